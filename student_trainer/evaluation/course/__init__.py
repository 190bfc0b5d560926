"""The evaluations of a run one after the other: their files, the curve, its uncertainty."""
