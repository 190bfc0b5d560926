"""Responses that are written turn by turn, with an environment that answers in between."""
