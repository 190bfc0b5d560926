"""The synthetic bias and variance experiment of arXiv 2603.25562: walks on a line, learnt from
one-token signals with a discount, and the variance of their gradients."""
