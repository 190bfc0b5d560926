"""How each tokenizer of a pair cuts text: asked once, remembered, and looked up in bulk.

A walk asks the same small questions thousands of times a row: which student token does
this text begin with, and would the teacher's tokenizer itself write these two tokens side
by side? Tokenizers answer a string at a time, so every answer is kept. Read in this order:

    canonical.py            which tokens a tokenizer itself writes, given the text around them
    spaces.py               why white space is special: what follows decides how it is cut
    left_context.py         how much of the text before a position has a say
    states.py               an automaton over what a path has written: the student's answers
    memo.py                 the hash table of the answers, looked up as arrays
    rests.py                what is left of teacher tokens after a position, as numbers
    pair_segmentation.py    all of it for one pair, and what the teacher's spaces imply
    extension_shares.py     how much of a row extends the token before it
    number_answers.py       what numbers give where a wide row is read, summed
    kinds.py                what is fixed for each teacher token, whatever the text
    pasts.py                in which ways the teacher may have cut the text before a position
"""
