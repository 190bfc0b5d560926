"""The HTTP side: thin handlers over ``teacher_server.scoring.service``."""
