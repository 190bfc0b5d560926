"""Laboratory models for text games: a small teacher trained on the games' own walkthroughs, and
students that are its early checkpoints from other seeds."""
