"""How the probability of each teacher row reaches the student's tokens.

Read in this order:

    rows.py             the teacher's rows, as a tree of paths
    masses.py           what a walk finds: settled, open and lost mass by position
    paths.py            a path of teacher tokens, its fate, and what is done for each fate
    walker.py           the walk as a whole: steps until every path has its fate
    starts.py, start_finder.py
                        from which rows a position's walk starts, and how they are found
    at_position.py, before_position.py, beyond_path.py
                        the steps, which decide fates: rows at a position, before it, and
                        after a path
    extensions.py       may a token be extended? Asked here alone, whatever the answer is
                        known from: the vocabularies, context-free rows (context_free.py) or
                        the rollout itself (seen.py)
"""
