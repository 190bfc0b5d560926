"""The commands of ``teacher-server``, one file each."""
