"""Measurements, one file a question. `python -m benchmarks.NAME` prints a table and writes JSON and a picture of it."""

from distrec import environment

environment.prepare()  # before a benchmark loads torch, as the programs that it measures do
