"""The rows of a dataset, from files, folders and the hub."""
