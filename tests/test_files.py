"""Files that are written whole or not at all."""

import json

from jaxtune.files import write_json


def test_half_a_character_is_written_as_json_escapes_it(tmp_path):
    """Names in other programs' files may hold lone surrogates; found by `make hostile`."""
    content = {"a\ud800": "é\udcff"}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_bytes()) == content
