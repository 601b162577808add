"""Raw datasets -> Parquet and `dataset.json`. One function a dataset: `synthetic.synthetic`, `movielens.movielens`,
`criteo.criteo`, and those of `retrieval`."""
