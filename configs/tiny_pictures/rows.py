"""Write the rows that the demo learns from, and those it is judged by: pictures and captions.

    python configs/tiny_pictures/rows.py --out configs/tiny_pictures

The captions say all in one sentence, which the base has not seen done.
"""

import argparse
import json
import random
from pathlib import Path

import scenes
import shapes

ROWS = {"train": 240, "held_out": 60}
SIDE = 80  # pixels, which are more than the base sees


def main() -> None:
    """Read the arguments, and write the pictures and the two files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="the folder")
    parser.add_argument("--seed", type=int, default=0, help="of the rows")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    chosen = parser.parse_args()
    there = [str(file) for name in ROWS if (file := chosen.out / f"{name}.jsonl").exists()]
    if there and not chosen.overwrite:
        parser.error(f"{', '.join(there)} exist; give --overwrite, or another --out")
    write(chosen.out, chosen.seed)


def write(folder: Path, seed: int = 0) -> None:
    """All rows, as files in a folder; their pictures lie in one beside."""
    shown = distinct(sum(ROWS.values()), seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for name, count in ROWS.items():
        lines = [_row(folder, f"pictures/{name}_{at:03}.png", shown.pop()) for at in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def distinct(count: int, seed: int) -> list[scenes.Scene]:
    """So many scenes, no two of which have the same caption."""
    rng = random.Random(f"rows {seed}")
    found: dict[str, scenes.Scene] = {}
    while len(found) < count:
        one = scenes.scene(rng)
        found.setdefault(scenes.caption(one), one)
    return list(found.values())


def _row(folder: Path, picture: str, scene: scenes.Scene) -> str:
    """A row as JSON; those to judge by have every caption that would do."""
    (folder / picture).write_bytes(shapes.png(scene.pixels(SIDE)))
    said: dict[str, object] = {"prefix": "caption en", "suffix": scenes.caption(scene)}
    if "held_out" in picture:
        said = {"captions": scenes.captions(scene)}
    return json.dumps({"image": picture, **said}, separators=(",", ":"))


if __name__ == "__main__":
    main()
