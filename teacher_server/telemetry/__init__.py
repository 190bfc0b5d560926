"""What operators see of the server: logs, metrics, and one request as both see it."""
