"""Where responses are judged: processes of their own, with bounds of time and memory and without
a network."""
