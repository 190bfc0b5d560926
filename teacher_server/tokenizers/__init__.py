"""Students' tokenizers: registered, kept, and paired with the teachers'."""
