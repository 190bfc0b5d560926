"""What a row says of its teacher: which one it is, and what only that one reads."""
