"""Runs on two ranks against runs of one process, which ``bench_ranks`` compares."""
