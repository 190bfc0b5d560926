"""Realignment judged from outside. Read ``reference.specification`` first.

``ngram``: the language model that stands in for a teacher. ``texts``: what it learns and what is
realigned. ``served``: the product, driven as the service drives it. ``cell``: one pair and text,
held against the specification. ``figures``: the worst cells. ``real_model``: rows of SmolLM2.
``compared``: two versions of one row, for tests.
"""
