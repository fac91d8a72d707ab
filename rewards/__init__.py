"""The scoring side: length, format and writing rewards, their failures, and the pool of reward models."""
