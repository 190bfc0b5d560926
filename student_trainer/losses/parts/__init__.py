"""What the losses are made of: rows and heads, supports, divergences, blocks of logits."""
