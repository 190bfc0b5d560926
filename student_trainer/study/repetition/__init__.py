"""What a teacher says inside a loop that is made on purpose, and where each objective pushes."""
