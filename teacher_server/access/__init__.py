"""Who may call, decided in the same way for both wires (docs/access.md)."""
