"""Studies that anyone can run again: each a room of its own, one row each in ``STUDIES``."""
