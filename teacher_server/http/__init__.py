"""The HTTP wire: thin handlers over ``teacher_server.scoring.service``."""
