"""Names and texts from elsewhere: what may leave this machine, and as what it is shown."""

import html
import re

import pytest
from markdown_it import MarkdownIt

from jaxtune.export import markdown


@pytest.mark.parametrize(
    "text, public",
    [
        ("at /home/me/runs/x: 3", "at x: 3"),
        ("~/models/base", "base"),
        ("C:\\Users\\me\\base", "base"),
        ("https://huggingface.co/a/b and/or 3/4", "https://huggingface.co/a/b and/or 3/4"),
    ],
)
def test_paths_lose_their_folders(text, public):
    assert markdown.public(text) == public


STRANGE = [
    "a|b", "a\\|b", "a\\\\|b", "`x`", "``", "<script>alert(1)</script>", "<!-- x", "[x](http://y)",
    "![x](y)", "# h", "- a", "1. x", "a\nb", "_x_", "a_b", "**b**", "&amp;", "$x$", "\x1b[31m",
    "---", "| a |", " a ", "a `", "\\", "\u202egnp.exe", "a\ud800b", "</code>", "```", "~~a~~",
]  # fmt: skip


@pytest.mark.parametrize("write", [markdown.plain, markdown.as_code])
@pytest.mark.parametrize("text", STRANGE)
def test_texts_are_shown_as_they_are(text, write):
    told = write(text)
    assert told.isprintable()
    page = MarkdownIt("commonmark").enable("table")
    for source, around in (
        (f"{told}", "p"),
        (markdown.table(["name", "other"], [[told, "z"]]), "td"),
    ):
        first, *rest = re.findall(rf"<{around}>(.*?)</{around}>", page.render(source))
        assert rest == (["z"] if around == "td" else [])
        bare = re.sub(r"^<code>(.*)</code>$", r"\1", first)
        assert "<" not in bare
        assert html.unescape(bare).strip() == markdown.visible(text).strip()


@pytest.mark.parametrize("text", [*STRANGE, '"', "'\\"])
def test_texts_in_code_are_literals(text):
    told = markdown.as_literal(text)
    assert eval(told) == text and told.isprintable()


def test_long_values_are_cut():
    assert len(markdown.as_code("x" * 10_000)) == 302
