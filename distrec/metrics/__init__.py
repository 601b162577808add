"""What a run measures: ranking quality, speed, and the writer that keeps the numbers."""
