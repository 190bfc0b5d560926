"""Who may call, told the same way for both wires (docs/access.md)."""
