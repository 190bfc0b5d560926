"""What is known about two tokenizers before the teacher has read anything.

Everything in this room follows from the two tokenizer files. Read in this order:

    vocabulary.py       a tokenizer as bytes: what each id stands for; tokenizer_json.py
                        parses the file, encoder.py turns any bytes into ids
    roles.py, levels.py what special tokens are for; how closely two tokenizers agree
    spelling.py         added tokens that one side lacks: the pair reads them as text; added.py
                        knows where one of these texts may have begun
    static_tables.py    what is built once for a pair, and kept on disk by cache.py
    tables.py           look-ups over the static tables: which student token a teacher
                        token begins, and which longer ones it may be the beginning of
    layout.py           one rollout in both tokenizers, and where their tokens meet
    sync_points.py      which of these places no later text can move
"""
