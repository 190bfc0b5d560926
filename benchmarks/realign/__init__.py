"""Realignment judged from outside. Read ``reference`` first: it is the specification.

``raw_tokenizer``: a tokenizer file as the ``tokenizers`` library reads it. ``ngram``: the
language model that stands in for a teacher. ``reference``: what a student's row ought to be,
by sampling what the teacher would write. ``enumeration``: the same by following the teacher's
paths. ``served``: the product, driven as the service drives it.
"""
