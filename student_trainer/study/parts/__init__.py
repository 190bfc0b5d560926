"""What the studies share: where figures come from, intervals, and how results are written."""
