"""Measure this project against its peers on the same machine."""
