"""Every reason for which a request is refused before it is scored."""
