"""A run's directory: its lock, checkpoints, resume, signals and progress."""
