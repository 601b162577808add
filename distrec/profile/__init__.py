"""What lies in one's own Parquet files, what each column is for, and a config that trains on them."""
