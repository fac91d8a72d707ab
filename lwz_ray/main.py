"""The front door: `python -m lwz_ray.main run=demo_cpu`."""

import sys

from launch.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
