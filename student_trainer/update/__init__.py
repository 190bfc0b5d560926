"""The update: from scored rollouts to a step of the optimiser."""
