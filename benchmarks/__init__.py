"""Measurements, one file a question. `python -m benchmarks.NAME` prints a table and writes JSON and a picture of it."""
