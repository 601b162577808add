"""From item vectors on disk to an index that serves them, and what serving by it costs in quality and gains in speed."""
