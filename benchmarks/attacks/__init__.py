"""Hostile clients, a neighbour beside them, and a server that does nothing to compare with."""
