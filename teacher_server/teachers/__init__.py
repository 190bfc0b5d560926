"""The teachers of a server: each with its engine, tokenizer, identity and queue."""
