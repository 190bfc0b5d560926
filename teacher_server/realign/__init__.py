"""Rows of a teacher, carried over to the tokens of a student that has another tokenizer.

Pure: tokenizer files and numbers in, numbers out; no engine, no wire
(docs/realignment.md).
"""
