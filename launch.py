"""Command line of jaxtune from a checkout: `python launch.py [COMMAND] …`, by default `train`."""

if __name__ == "__main__":
    from jaxtune.cli.start import start

    start("launch.py")
else:
    from jaxtune.cli.main import main as main
    from jaxtune.cli.main import parsed as parsed
