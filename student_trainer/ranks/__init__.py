"""What the ranks of a run make of it together."""
