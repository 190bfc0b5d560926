"""What both programs share: how they start and end, their settings, their checks, and
the byte alphabet of tokenizers."""
