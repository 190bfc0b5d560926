"""What can be set, by section; teacher_server/config.py puts the sections together."""
