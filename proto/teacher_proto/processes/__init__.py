"""What processes do for the program that started them, and with memory that they have freed."""
