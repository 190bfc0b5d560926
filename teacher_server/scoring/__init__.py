"""The path of a request to its scores, the same for both wires."""
