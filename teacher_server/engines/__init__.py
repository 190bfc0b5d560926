"""Engines: token ids go in and rows come out (``base``), by torch or by vLLM."""
