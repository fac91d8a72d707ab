"""Stages of a run: each module has `run(config) -> int`, the exit status."""
