"""Engines that write responses, one row each in ``rollout.engine.ENGINES``."""
