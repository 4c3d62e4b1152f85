"""Reads export.json, the report of an export, with the checksums of its files."""

from pathlib import Path
from typing import Any

from jaxtune.checkpoint.formats.tensors import CheckpointError
from jaxtune.checkpoint.origin import NPZ
from jaxtune.files import NUMBER, read_json

REPORT = "export.json"
MEASURED = {
    "logits": NUMBER,
    "kl": NUMBER,
    "agreement": NUMBER,
    "positions": int,
    "answers": int,
    "alike": int,
    "limit?": NUMBER,
}
SHAPE = {
    "files": {...: {"bytes": int, "sha256": str}},
    "step?": (int, None),
    "adapter?": (str, None),
    "dtype?": str,
    "into?": (str, None),
    "rows?": {"from": str, "count": int},
    "comparison?": (MEASURED, None),
    "same?": ({"arrays": int, "positions": int}, None),
    "reference?": (MEASURED, None),
    "merging?": {...: MEASURED},
    "tokenizer?": [str],
    "warnings?": [str],
}


def report_file(path: Path) -> Path:
    """Returns the path of the report: in an exported directory, or beside an .npz file."""
    return path.with_name(f"{path.stem}.{REPORT}") if path.suffix == NPZ else path / REPORT


def read_report(path: Path) -> dict[str, Any]:
    """Returns the report of an exported directory or .npz file, or {} if it has none.

    Raises CheckpointError if the report is damaged, or if an export did not write it.
    """
    try:
        report = read_json(report_file(path), SHAPE)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if folders := [name for name in report["files"] if Path(name).name != name]:
        raise CheckpointError(
            f"{report_file(path)} lists {folders[0]!r}, and an export has no files in folders; "
            "repair or remove it"
        )
    return report
