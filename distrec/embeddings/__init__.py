"""Embedding tables: from config to collections (`tables`), to a plan (`plan`), to shards on ranks (`shard`)."""
