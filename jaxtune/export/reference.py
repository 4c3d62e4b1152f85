"""Runs written files under transformers and PEFT in a subprocess, which frees its memory at exit.

Importing this module imports neither library; the subprocess, which runs it as a program, does.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxtune.data.batches import collate
from jaxtune.data.examples import Example
from jaxtune.decoding.requests import Completion
from jaxtune.display.errors import UserError
from jaxtune.export.verify import ComparisonRows, ModelOutputs

NEEDED = ("torch", "transformers", "peft")


def check(target: Path | None) -> None:
    """Raises if a library is missing, or the target is an .npz file, which they cannot read."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"--verify=reference needs transformers and PEFT, but {', '.join(missing)} cannot be "
            f"imported: pip install {' '.join(missing)}"
        )
    if target is not None and target.suffix == ".npz":
        raise UserError(
            f"--verify=reference: transformers cannot read .npz files such as {target}; export "
            "a directory"
        )


def observed(
    model: Path,
    adapter: Path | None,
    pictured: bool,
    rows: ComparisonRows,
    answers: Sequence[Completion],
) -> ModelOutputs:
    """Returns the outputs of transformers on rows and answers.

    Args:
      model: Directory of the checkpoint.
      adapter: Directory of an adapter on it, or None.
      pictured: Whether the model takes pictures.
      rows: Rows whose logits are computed.
      answers: Answers to the prompts of `rows`.

    Returns:
      The logits at the compared positions, and for each answer the likeliest token at each of its
      positions, given the prompt and the answer's previous tokens.
    """
    said = _answered(rows, answers)
    asked = {"rows": rows, "answers": said}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        about = {"model": str(model), "adapter": adapter and str(adapter), "pictured": pictured}
        (place / "about.json").write_text(json.dumps(about))
        for part, given in asked.items():
            np.savez(place / f"{part}.npz", **_arrays(given))
        _run(place)
        found = {part: np.load(place / f"{part}.logits.npy") for part in asked}
    logits = found["answers"]
    logits = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    gone_on = [
        Completion(each[inside].argmax(axis=-1).tolist(), each[inside].max(axis=-1).tolist(), False)
        for each, inside in zip(logits, said.counted, strict=True)
    ]
    return ModelOutputs(found["rows"][rows.counted], gone_on)


def _answered(rows: ComparisonRows, answers: Sequence[Completion]) -> ComparisonRows:
    """Returns prompts with their answers; compared are the positions that predict answer tokens."""
    whole = [
        (np.int32([*p, *a.tokens]), len(p)) for p, a in zip(rows.prompts, answers, strict=True)
    ]
    told = [(tokens, np.arange(len(tokens)) >= prompt) for tokens, prompt in whole]
    longest = max(len(tokens) for tokens, _ in told)
    batch = collate(
        [[Example(tokens, scored, scored, rows.about)] for tokens, scored in told],
        shape=(len(told), longest, rows.new),
        full_prefix=rows.batch.causal is not None,
    )
    for row, (tokens, _) in enumerate(told):
        batch.valid[row, len(tokens) - 1] = False  # the last token predicts nothing
    return replace(rows, batch=batch, prompts=[])


def _arrays(rows: ComparisonRows) -> dict[str, np.ndarray]:
    batch = rows.batch
    found = {"tokens": batch.tokens, "valid": batch.valid, "where": batch.where}
    if batch.causal is not None:
        found["causal"] = batch.causal
    if rows.images is not None:
        found |= {f"images.{row}": each for row, each in enumerate(rows.images)}
    return found


def _run(place: Path) -> None:
    command = [sys.executable, "-m", "jaxtune.export.reference", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise UserError(f"transformers and PEFT cannot run the written files: {last}")


def main(place: Path) -> None:
    """Runs in the subprocess: reads inputs from `place` and writes float32 logits there."""
    import torch

    about = json.loads((place / "about.json").read_text())
    with torch.inference_mode():
        model = _loaded(**about)
        for part in ("rows", "answers"):
            with np.load(place / f"{part}.npz") as given:
                np.save(place / f"{part}.logits.npy", _logits(model, dict(given)))


def _loaded(model: str, adapter: str | None, pictured: bool):
    import torch
    import transformers
    from peft import PeftModel

    kind = "AutoModelForImageTextToText" if pictured else "AutoModelForCausalLM"
    found = getattr(transformers, kind).from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    found = PeftModel.from_pretrained(found, adapter) if adapter else found
    return found.eval()


def _logits(model, given: dict[str, np.ndarray]) -> np.ndarray:  # float32[B, K, V]
    # One row at a time: with longrope, transformers picks the angles of a batch by its longest row.
    return np.stack([_of_row(model, given, row) for row in range(len(given["tokens"]))])


def _of_row(model, given: dict[str, np.ndarray], row: int) -> np.ndarray:  # float32[K, V]
    import torch

    size = int(given["valid"][row].sum())
    inputs = {"input_ids": torch.from_numpy(given["tokens"][row : row + 1, :size].astype(np.int64))}
    if "causal" in given:
        causal = given["causal"][row : row + 1, :size].astype(np.int64)
        inputs["token_type_ids"] = torch.from_numpy(causal)
    if f"images.{row}" in given:
        inputs["pixel_values"] = torch.from_numpy(given[f"images.{row}"]).permute(0, 3, 1, 2)
    logits = model(**inputs, use_cache=False).logits.float().numpy()
    return logits[0, given["where"][row]]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
