"""The prompts of tasks, in place of those of files."""
