"""How each teacher row's probability reaches the student's tokens."""
