"""Configs and the files of a finished run that the tests of model cards share."""

import json
from pathlib import Path

from jaxtune.config import load as configs
from jaxtune.config.schema import Config

SECRET = "hf_" + "a1B2" * 9


def config(base: Path | str, source: Path | str = "maker/rows", **changes) -> Config:
    values = {
        "model": {"path": str(base)},
        "data": {"source": str(source), "prefix": "a|`b`\n{theme}: "},
        "trainable": {"rank": 2, "alpha": 4.0},
        "eval": {"holdout": 2},
        "log": {"wandb": "secret project"},
    }
    return configs.parse({**values, **changes})


SUMMARY = {
    "steps": 8,
    "epochs": 2.0,
    "stopped_early": True,
    "eval_loss_before": 6.0,
    "eval_loss": 2.0,
    "eval_step": 8,
    "tokens": 12345,
    "examples": 64,
    "trained_parameters": 100,
    "parameters": 2000,
    "seconds": 61.0,
    "tokens_per_second": 202.4,
    "memory": {"bytes": 1 << 30, "of": "this process"},
    "devices": "1 × cpu",
    "exported": "/home/someone/export/adapter",
}


def exported(place: Path, **changes) -> dict:
    """As the export reports; paths in it are none of a card's."""
    same = {"logits": 1.2e-5, "kl": 2e-9, "agreement": 1.0, "positions": 128, "answers": 8}
    moved = same | {"logits": 0.31, "alike": 6}
    found = {
        "base": f"{place}/base",
        "step": 8,
        "adapter": None,
        "rows": {"from": "held-out rows", "count": 8},
        "comparison": same | {"alike": 8, "ties": 0, "limit": 1e-4, "kept": True},
        "reference": None,
        "merging": {"original": moved},
        "files": {},
    }
    return found | changes


def judged(place: Path) -> dict:
    figure = {"value": 12.0, "low": 11.0, "high": 13.5}
    better = {"value": 4.0, "low": 3.0, "high": 5.0}
    one = {"rows": 2, "loss": 6.0, "perplexity": None, "weights": "", "predictions": ""}
    tuned = {
        "weights": f"{place}/export/adapter",
        "predictions": f"{place}/eval/tuned-1/predictions.jsonl",
        "metrics": {"colour": better, "none": dict.fromkeys(("value", "low", "high"))},
    }
    less = {"value": -8.0, "low": -9.5, "high": -6.5, "intervals_overlap": False}
    return {
        "base": one | {"metrics": {"colour": figure}},
        "tuned": one | {"loss": 2.0, "perplexity": 7.389} | tuned,
        "tuned_less_base": {"colour": less},
        "remarks": [f"see {place}/eval and {SECRET}"],
    }


def rewrite(file: Path, **changes) -> None:
    file.parent.mkdir(exist_ok=True)
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | changes))
