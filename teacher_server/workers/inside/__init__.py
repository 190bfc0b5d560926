"""What runs in the processes: the fork server, and the students' that are forked from it."""
