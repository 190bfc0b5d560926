"""The student: its model, head and tokenizer, and which ids it can write."""
