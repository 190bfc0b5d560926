"""The languages of the laboratory: their words, tasks and tokenizers. No torch."""
