"""The engine ``transformers``; its head computes the rows inside vLLM's workers too."""
