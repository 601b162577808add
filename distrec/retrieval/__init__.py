"""Retrievers: two vectors trained against other items, exact search over all of them, and who asks."""
