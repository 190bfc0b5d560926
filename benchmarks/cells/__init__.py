"""Would cells tell a student more than what the product returns? A study in small.

A teacher that writes numbers digit by digit cannot say in one row what a student with
three-digit tokens will write next: it says "something that begins with 4". The product masks
most such rows, or returns what is certain with one rest. *Cells* would return all that the
teacher's rows know: the mass of each set of tokens with one beginning. This package trains a
teacher and students for additions on the spot, distils the students with and without cells,
and says who learns more from equally many tokens of the teacher. Nothing of it is part of the
product.

    task.py     the problems
    pair.py     the two tokenizers
    model.py    the two models
    rows.py     the teacher's rows, realigned by the product
    exact.py    the same by brute force
    cells.py    cells, from what the product's walk knows
    losses.py   what a student learns from them
    arms.py     the sides of the comparison
    distil.py   one run
    facts.py    what rows hold before anything is learnt
    gate.py     who has won
"""
