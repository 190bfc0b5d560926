"""Sequences that the student reads side by side, without padding."""
