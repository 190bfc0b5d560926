"""Calls of tools: the forms in which chat templates write them, and tools that can be called."""
