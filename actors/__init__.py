"""The generating side: rollout workers, engines, and receiving weights."""
