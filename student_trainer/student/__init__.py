"""The student: its model, head and tokenizer, and the ids that it can write."""
