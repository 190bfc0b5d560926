"""The one path from a request to its scores, whichever wire it came by."""
