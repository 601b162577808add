"""Files that serve: tables, a retriever's vectors, and a model without its tables as a program."""
