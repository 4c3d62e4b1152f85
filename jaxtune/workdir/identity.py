"""Whether a run still stands on the files that it began with: its base, tokenizer and the like."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtune.workdir.directory import RUN, read_json
from jaxtune.workdir.errors import WorkdirError

STANDS_ON = "stands_on"  # entry of run.json
# Contents of files, by what they are to the run and by file name: size, digest, time of writing.
Identity = Mapping[str, Mapping[str, Sequence[int | str]]]


def refuse_replaced(workdir: Path, now: Identity, advice: str) -> list[str]:
    """Raises WorkdirError if files that a run stands on have other content than when it began.

    Args:
      workdir: Directory of the run. One from before its files were recorded passes.
      now: Contents of the files now.
      advice: What else can be done than to restore the files; ends the message.

    Returns:
      Notes about files that were written again, without a change that was seen.
    """
    before = (read_json(workdir / RUN) or {}).get(STANDS_ON, {})
    if not _is_identity(before):
        raise WorkdirError(
            f"{workdir / RUN}: {STANDS_ON} is not what jaxtune wrote; restore the file, {advice}"
        )
    changed = list(_changes(before, now))
    if before and changed:
        raise WorkdirError(
            "\n  ".join([f"the run in {workdir} was begun with other files:", *changed])
            + f"\nRestore them, {advice}"
        )
    return [f"note: {name} was written again since the run began" for name in _again(before, now)]


def _is_identity(found: Any) -> bool:
    """Whether a part of a JSON file has the form of an `Identity`."""
    return isinstance(found, dict) and all(
        isinstance(files, dict)
        and all(
            isinstance(each, list) and [type(part) for part in each] == [int, str, int]
            for each in files.values()
        )
        for files in found.values()
    )


def _changes(before: Identity, now: Identity) -> Iterator[str]:
    """Yields a line for each file that has other content than before, is new, or is gone."""
    for kind in {**before, **now}:
        old, new = before.get(kind, {}), now.get(kind, {})
        for name in sorted({*old, *new}):
            if name not in new:
                yield f"{kind}: {name} is gone"
            elif name not in old:
                yield f"{kind}: {name} is new"
            elif old[name][0] != new[name][0]:
                yield f"{kind}: {name} had {old[name][0]:,} bytes and has {new[name][0]:,}"
            elif old[name][1] != new[name][1]:
                yield f"{kind}: {name} has the same size and other content"


def _again(before: Identity, now: Identity) -> list[str]:
    """Returns names of the base's files with another time of writing."""
    old, new = before.get("base", {}), now.get("base", {})
    return [name for name in old if name in new and old[name][2] != new[name][2]]
