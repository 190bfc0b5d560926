"""What both programs read of a model: its folder, its weights' digest, its text part.

Nothing here imports torch or transformers: models and configurations of transformers are
taken as they are.
"""
