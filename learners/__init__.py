"""The training side: backends, objectives, checkpoints, and sending weights."""
