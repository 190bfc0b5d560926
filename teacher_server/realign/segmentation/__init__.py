"""How each tokenizer of a pair cuts text: asked once, and remembered."""
