"""Large JSON texts, piece by piece: what they hold is counted, and their long strings are read."""
