"""`python -m animatediff_lightning.distill` is the console script `animatediff-lightning`."""

import sys

from .cli.program import main

if __name__ == "__main__":
    sys.exit(main())
