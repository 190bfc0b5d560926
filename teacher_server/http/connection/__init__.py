"""One HTTP connection: whether it may be open, how long it may take, what it carries."""
