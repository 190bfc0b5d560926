"""Benchmarks of the trainer's parts, which benchmarks.bench_trainer runs."""
