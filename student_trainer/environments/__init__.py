"""The processes in which the environments of episodes run; ``inside.py`` is what runs there."""
