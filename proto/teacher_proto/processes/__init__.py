"""What processes that a program starts do for it."""
