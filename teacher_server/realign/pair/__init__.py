"""What is known of two tokenizers before any row is read, and of a text in both."""
