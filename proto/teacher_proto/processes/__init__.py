"""What processes do for the program that started them, what they may do, and what becomes of
memory that they have freed."""
