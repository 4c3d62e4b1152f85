"""metrics.jsonl: lines that are ours, lines that are not, and where a resumed run cuts it."""

import pytest

from jaxtune.config.run_sections import Log
from jaxtune.workdir.directory import run_directory
from jaxtune.workdir.errors import WorkdirError
from jaxtune.workdir.journal import entries, journal, refuse_foreign_lines

LINES = "".join(f'{{"step": {step}, "kind": "train", "loss": 1.5}}\n' for step in (2, 4, 6))


@pytest.mark.parametrize(
    "foreign", ["[1]", "5", '{"step":"a"}', '{"kind":"train"}', "garbage", "null", "[" * 100_000]
)
def test_a_foreign_line_is_named_and_left(foreign, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(LINES + foreign + "\n" + LINES)
    with pytest.raises(WorkdirError, match=r"metrics.jsonl:4: expected .* remove this line"):
        refuse_foreign_lines(file)
    assert file.read_text() == LINES + foreign + "\n" + LINES


@pytest.mark.parametrize("step, kept", [(0, 0), (2, 1), (4, 2), (9, 3)])
def test_lines_of_later_steps_and_a_torn_one_are_cut(step, kept, tmp_path):
    with run_directory(tmp_path, {}) as workdir:
        file = tmp_path / "metrics.jsonl"
        file.write_text(LINES + '{"step": 7, "ki')
        with journal(workdir, Log(), {}, step, first=True):
            assert file.read_text() == "".join(LINES.splitlines(keepends=True)[:kept])


def test_no_file_has_no_lines(tmp_path):
    assert list(entries(tmp_path / "metrics.jsonl")) == []
