"""The gRPC side: thin handlers over ``teacher_server.service``."""
