"""What of a tokenizer.json decides ids, and where two of them differ."""
