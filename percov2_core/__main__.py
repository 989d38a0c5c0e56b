"""`python -m percov2_core`."""

import sys

from percov2_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
