"""What the hostile inputs are made from: a tiny base, tokenizers, rows, an adapter, a whole run."""

import contextlib
import functools
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "configs/tiny_pictures/base"
# The hardest settings: everything that has a state of its own, or could depend on timing.
HARDEST = """
def get_config():
    return dict(
        steps={steps},
        model=dict(path={base!r}, quant="nf4-double"),
        data=dict(source={rows!r}),
        trainable=dict(rank=2, dropout=0.1),
        optim=dict(name="adamw8bit", lr=0.01, weight_decay=0.1),
        schedule=dict(name="cosine", warmup=2),
        batch=dict(rows=4, accumulate=2, max_length=64, packing=True),
        eval=dict(holdout=8, every=4),
        checkpoint=dict(every=3, keep=2),
        log=dict(every=2),
    )
"""
_numbers = itertools.count()


def environment(place: Path) -> dict[str, str]:
    """Environment of every process of the campaign: no network, no card, shared programs."""
    from tests.devices import LIGHT

    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": LIGHT,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(place / "hub"),
        "HF_DATASETS_CACHE": str(place / "datasets"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "COLUMNS": "100",
        "JAX_COMPILATION_CACHE_DIR": str(place / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONDONTWRITEBYTECODE": "1",
        # Workers that hang are killed, and leave what this process then cleans up.
        "PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker",
    }


@dataclass(frozen=True)
class World:
    """The folder that `build` filled; every process opens it anew."""

    place: Path

    @property
    def base(self) -> Path:
        """A tiny checkpoint with the tokenizer of Gemma's kind."""
        return self.place / "base"

    @property
    def rows(self) -> Path:
        """JSON lines that it trains on."""
        return self.place / "rows.jsonl"

    @property
    def config(self) -> Path:
        """A config of a few steps with the hardest settings."""
        return self.place / "hardest.py"

    @property
    def run(self) -> Path:
        """Directory of a whole run of that config."""
        return self.place / "run"

    @property
    def adapter(self) -> Path:
        """The adapter that this run exported."""
        return self.run / "export/adapter"

    def tokenizer(self, kind: str) -> Path:
        """Directory of a tokenizer of tests/data/made.py."""
        return self.place / "tokenizers" / kind

    @functools.cached_property
    def loaded(self):
        """The base as `jaxtune.load` returns it."""
        import jaxtune

        return jaxtune.load(self.base)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yields an empty folder, and removes it afterwards."""
        found = self.place / "scratch" / f"{os.getpid()}-{next(_numbers)}"
        found.mkdir(parents=True)
        try:
            yield found
        finally:
            shutil.rmtree(found, ignore_errors=True)


TOKENIZERS = ("gemma", "llama", "qwen", "mistral", "sentencepiece_chat")


def build(place: Path) -> World:
    """Fills a folder with what the inputs are made from; takes some ten seconds."""
    from tests import tiny
    from tests.data import made
    from tests.hostile import adapters

    world = World(place)
    (place / "scratch").mkdir(parents=True)
    tiny.write_base(world.base)
    tiny.write_rows(world.rows, 40)
    for kind in TOKENIZERS:
        world.tokenizer(kind).mkdir(parents=True)
        made.KINDS[kind](world.tokenizer(kind))
    tables(place, tiny.records(20))
    text = HARDEST.format(steps=6, base=str(world.base), rows=str(world.rows))
    world.config.write_text(text)
    whole_run(world)
    adapters.write(world)
    return world


def tables(place: Path, records: list[dict]) -> None:
    """Writes the records in every format that is read."""
    import csv
    import json

    import datasets
    import pyarrow
    from pyarrow import parquet

    lines = [json.dumps(record) for record in records]
    (place / "table.jsonl").write_text("\n".join(lines) + "\n")
    (place / "table.json").write_text(json.dumps(records, indent=1))
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        with (place / f"table.{suffix}").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["prefix", "suffix"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(records)
    parquet.write_table(pyarrow.Table.from_pylist(records), place / "table.parquet")
    datasets.Dataset.from_list(records).save_to_disk(str(place / "saved"))


def whole_run(world: World) -> None:
    """Trains the config to its end, in this process."""
    from jaxtune.config.load import load
    from jaxtune.display.progress import Quiet
    from jaxtune.runs.run import fit

    fit(load(world.config), world.run, progress=Quiet())
