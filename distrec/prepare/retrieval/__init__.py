"""Logs of who took what -> training rows, queries and the item catalogue. One function a dataset: `gowalla.gowalla`,
`amazon_sequences.amazon_sequences`, `movielens_retrieval.movielens_retrieval`, `interactions.interactions`."""
