"""The engine ``transformers``: a model of transformers, run by torch in this process."""
