"""What a student's row ought to be, by ways that are not the product's.

``specification`` says what a row is and draws it: a newcomer reads it first. ``truth``: a right
row, and how far others are from it. ``pasts``: the ways in which the text so far may be cut.
``rollout``: where they are looked for. ``raw_tokenizer``: a tokenizer file as the ``tokenizers``
library reads it. ``exhaustive``: the specification to the letter, for toys. ``enumeration`` and
``settling``: another way to the same rows, which the tests hold against it.
"""
