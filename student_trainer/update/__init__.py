"""From scored rollouts to one step of the optimizer."""
