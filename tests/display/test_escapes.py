"""What comes from outside cannot control a terminal, however long or deep it is."""

import io
import json

import pytest

from jaxtune.display.escapes import (
    controlled,
    cut,
    json_text,
    one_line,
    plural,
    show,
    shown,
    unbroken,
    visible,
)
from jaxtune.display.progress import CLEAR, Progress

# Sets the title of a window, and erases the screen.
HOSTILE = "a\x1b]0;owned\x07b\x1b[2Jc"
SEEN = r"a\x1b]0;owned\x07b\x1b[2Jc"


def test_control_characters_are_made_visible():
    assert visible(HOSTILE) == SEEN
    assert visible("\x9b2J\r\x7f\udc80\u202e") == r"\x9b2J\r\x7f\udc80\u202e"
    assert visible("two\nlines\tand — ½ 日本 🙂 é") == "two\nlines\tand — ½ 日本 🙂 é"
    assert one_line("two\nlines\t") == r"two\nlines\t"
    assert (controlled("a\nb"), controlled("a b")) == (r"\n", None)


def test_a_text_is_shown_without_what_it_would_do():
    out = io.StringIO()
    show(HOSTILE, out)
    assert out.getvalue() == f"{SEEN}\n"


def test_json_for_people_stays_json():
    content = {"é\x9b": HOSTILE + "\x7f\u202e"}
    text = json_text(content)
    assert json.loads(text) == content and "é" in text
    assert not set(text) & set("\x1b\x07\x9b\x7f\u202e")


@pytest.mark.parametrize("live", [True, False])
def test_progress_keeps_only_its_own_escapes(live, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: live, raising=False)
    progress = Progress(out)
    progress.draw(f"reading {HOSTILE}")
    progress.say(f"read {HOSTILE}")
    drawn = f"{CLEAR}reading {SEEN}{CLEAR}" if live else ""
    assert out.getvalue() == f"{drawn}read {SEEN}\n"


def test_values_are_shown_in_short():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "[[[[[[[…]]]]]]]"
    assert shown(10**5000) == "an integer of 16,610 bits"
    assert shown("x" * 1000) == "'" + "x" * 78 + "…"
    assert shown({"a": [1, (None,)]}) == "{'a': [1, (None,)]}"
    assert shown("\x1b") == r"'\x1b'" and cut("abc", 2) == "a…"
    assert unbroken(f"no {'k' * 10_000} here") == f"no {'k' * 60}…{'k' * 20} here"
    assert unbroken(f"no {'k' * 300} here") == f"no {'k' * 300} here"


def test_one_is_no_plural():
    found = (plural(1, "row"), plural(0, "row"), plural(12345, "row"), plural(1.0, "epoch", ".3g"))
    assert found == ("1 row", "0 rows", "12,345 rows", "1 epoch")
    assert plural(0.5, "epoch", ".3g") == "0.5 epochs"
