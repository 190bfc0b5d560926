"""How the probability of each teacher row reaches the student's tokens.

Read in this order:

    rows.py             the teacher's rows, as a tree of paths
    masses.py           what a walk finds: settled, open and lost mass by position
    walker.py           the walk as a whole
    starts.py           from which rows a position's walk starts
    context.py          what the steps share: kinds of tokens, the ledger, open paths
    at_position.py, before_position.py, beyond_path.py
                        the steps: rows at a position, before it, after an open path
    extensions.py       may a token be extended? Asked of the vocabularies, of context-free
                        rows (context_free.py) and of the rollout itself (seen.py), which
                        both read rows by extension_shares.py
"""
