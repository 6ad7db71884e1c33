"""`python -m gantrain` is the command line."""

import sys

from gantrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
