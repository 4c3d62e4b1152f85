"""Text in columns: as wide as the terminal, and no wider than a hundred."""

import pytest

from jaxtune.display import columns


@pytest.mark.parametrize("terminal, most", [("60", 60), ("100", 100), ("300", 100), ("7", 40)])
def test_paragraphs_fit_the_terminal(terminal, most, monkeypatch):
    monkeypatch.setenv("COLUMNS", terminal)
    lines = columns.labelled({"trains": "so many words " * 30})
    assert most - 8 <= max(map(len, lines)) <= most
    assert all(line.startswith(" " * 12) for line in lines[1:])


def test_without_a_terminal_lines_are_a_hundred_wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert columns.width() == columns.WIDTH
