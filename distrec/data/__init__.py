"""Parquet files to `distrec.batch.Batch`: every row exactly once an epoch, on any number of ranks."""

from distrec.data.columns import uses
from distrec.data.loader import Reader
from distrec.data.parquet import Dataset, open_dataset

__all__ = ["Dataset", "Reader", "open_dataset", "uses"]
