"""`make demo`: a tiny bundled model learns to answer a theme with a palette of four colours.

Runs configs/palette_demo.py as `launch.py train` and then `launch.py eval --both` would, and shows
the answers of the untuned and the tuned model to held-out themes.
"""

import json
import sys
from pathlib import Path

from jaxtune.config import load as configs
from jaxtune.display.escapes import show, visible
from jaxtune.evaluation.compare import compare
from jaxtune.runs.run import fit
from jaxtune.tasks import palette

CONFIG, WORKDIR = "configs/palette_demo.py", Path("runs/palette_demo")
THEMES = 4  # held-out rows whose answers are printed


def main() -> None:
    """Trains, unless the run is complete already, and prints answers before and after training."""
    config = configs.load(CONFIG)
    summary = fit(config, WORKDIR)
    result = compare(config, WORKDIR, base=True)
    answered = {who: lines(Path(result[who]["predictions"])) for who in ("base", "tuned")}
    print("\nheld-out themes: answers of the base and the tuned model, and the reference palette\n")
    for base, tuned in list(zip(*answered.values(), strict=True))[:THEMES]:
        show(base["prompt"].partition("Theme: ")[2].partition("\n")[0])
        for who, text in (
            ("base", base["answer"]),
            ("tuned", tuned["answer"]),
            ("reference", base["references"][0]),
        ):
            print(f"  {who:<11}{palette.shown(visible(text), sys.stdout.isatty())}")
        print()
    show(f"adapter, also readable by PEFT: {summary['exported']}")


def lines(file: Path) -> list[dict]:
    """Reads a file of JSON lines, such as predictions."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
