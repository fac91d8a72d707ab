"""What is true of long-form writing RL without a cluster: records, maths, packing, the loop."""

__version__ = "0.1.0"
