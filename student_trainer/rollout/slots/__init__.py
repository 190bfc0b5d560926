"""The slots of a batch, which sequences enter and leave: ``layers`` keeps what a model has read,
``slots`` reads prompts and tokens with it, ``supported`` says whether a student can be read so."""
