"""Command line of jaxtune from a checkout: `python launch.py [COMMAND] …`, by default `train`."""

from jaxtune.cli.main import console
from jaxtune.cli.main import main as main
from jaxtune.cli.main import parsed as parsed

if __name__ == "__main__":
    console("launch.py")
