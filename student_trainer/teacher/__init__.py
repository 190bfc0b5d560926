"""The trainer as a client of its teacher: connection, requests, registration."""
