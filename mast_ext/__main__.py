"""``python -m mast_ext``: the program."""

import sys

from mast_ext.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
