"""Rows of a teacher over the tokens of a student that has another tokenizer.

The problem. A teacher scores a rollout as distributions over its own tokens; a student
that learns from it needs distributions over the student's tokens. The two do not line up:
a token of one side may begin or end inside a token of the other, and how a tokenizer cuts
a text often depends on the text that follows.

The idea. The rollout's bytes are encoded with the teacher's tokenizer, and the teacher
scores these tokens. For each student position a *walk* then starts from a boundary that
both tokenizers share and that no later text can move (the *sync point*), and follows the
teacher's rows. Every path of teacher tokens writes bytes; the student's tokenizer turns
them into tokens; and the path's probability goes to the first of these as soon as nothing
that may follow can change it. What no row decides is reported as open mass, and only ids
are returned whose probability the open mass could change by at most 5%.

Read in this order:

    realigner.py    the way in: lay a rollout out, then realign its rows
    pair/           what is known about two tokenizers before a row is read
    segmentation/   how each tokenizer cuts text, asked once and remembered
    walk/           how the mass of each teacher row reaches the student's tokens
    certify.py      which ids are returned, and what is not known about them
    reasons.py      which rows are masked or coarse, and why
    remap.py        pairs that share their ordinary ids need no walk
    requests/       a whole request: what is asked of the teacher, and when
    compare.py      the command that compares two tokenizers

Pure: tokenizer files and numbers go in, numbers come out; no engine, no wire. What is
exact, what is approximate, what is masked and what coarse: docs/realignment.md.
"""
