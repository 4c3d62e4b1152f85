"""Batches of the bundled rows, which the other examples train on."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxtune.data.batches import Batch, collate
from jaxtune.data.examples import RowEncoder, Template

BASE = str(Path(__file__).parents[1] / "configs" / "tiny" / "base")
ROWS = Path(__file__).parents[1] / "configs" / "tiny" / "palette.csv"
TEMPLATE = Template("{description}\n", "{colors}")
LENGTH = 80  # tokens; the longest row has 73


def batches(tokenizer, rows: int = 4, seed: int = 0) -> Iterator[Batch]:
    """Yields batches of `rows` rows, drawn at random without end; the colours are scored."""
    encode = RowEncoder(tokenizer, TEMPLATE, max_length=LENGTH)
    with ROWS.open(newline="") as file:
        records = list(csv.DictReader(file))
    draw = np.random.default_rng(seed)
    while True:
        chosen = draw.choice(len(records), rows, replace=False)
        examples = [[encode(records[row], f"row {row}")] for row in chosen]
        yield collate(examples, shape=(rows, LENGTH, 64))
