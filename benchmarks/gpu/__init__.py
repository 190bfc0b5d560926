"""The parts of `make bench-gpu`."""
