"""Students' tokenizers, each in a process of its own."""
