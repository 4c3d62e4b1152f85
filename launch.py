"""Command line of jaxtune from a checkout: `python launch.py [COMMAND] …`, by default `train`."""

import sys

from jaxtune.cli.main import main as main
from jaxtune.cli.main import parsed as parsed

if __name__ == "__main__":
    sys.exit(main())
