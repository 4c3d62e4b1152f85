"""Names that may leave this machine."""

import pytest

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
