"""A whole request in a student's tokenizer, realigned: what is asked of the teacher, and when.

Read in this order:

    messages.py      what a request asks, and what is said while it is realigned
    request.py       the request as a generator: it yields what it asks, and is sent rows
    planned.py       what the teacher reads of it
    realigned.py     scores of a continuation out of the teacher's rows
    further_rows.py  rows beyond the rollout's own
    extra_rows.py    which of them are worth a round
    serve.py         the generator over messages, between processes
    request_frames.py, step_frames.py, result_frames.py
                     these messages, and what of them is believed

No engine, no wire and no torch: whoever runs the generator has the rows.
"""
