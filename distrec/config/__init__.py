"""A run's config: its words (`schema`), reading it (`load`), its joint rules (`check`), its features in order (`layout`)."""
