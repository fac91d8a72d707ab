"""Compose a run from all rooms: Hydra presets, Ray placement, stages, set-up of local models."""
