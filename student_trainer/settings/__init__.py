"""Every setting of a training run, one section a file."""
