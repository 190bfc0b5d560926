"""The language of the laboratory: its words, its task and its tokenizer. No torch."""
