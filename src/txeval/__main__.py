"""`python -m txeval` is `txeval`."""

import sys

from txeval.cli import main

if __name__ == "__main__":
    sys.exit(main())
