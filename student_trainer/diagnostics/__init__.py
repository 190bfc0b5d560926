"""What a step's responses and sampled tokens say of how a run goes (docs/diagnostics.md). Arrays
and numbers alone: no torch."""
