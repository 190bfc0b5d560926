"""The quickstart: a real teacher and a real student on a machine without a GPU."""
