"""`launch.py preview`: rows as a person checks them."""

import json
import re
from pathlib import Path

import launch


def test_rows_and_counts_on_the_terminal_and_as_a_page(config, capsys):
    options = ["preview", "--config", config(eval={"holdout": 8}), "--rows", "2"]
    assert launch.main(options) == 0
    printed = capsys.readouterr().out
    assert re.search(r"scored tokens +[\d,]+ \(\d+\.\d%\)", printed)
    assert re.search(r"prefix +<bos>\w+", printed) and re.search(r"scored +#.*<eos>", printed)
    assert re.search(r"padding +\d+ tokens", printed) and "rows.jsonl:" in printed
    page = Path("runs/x/preview.html").read_text()
    assert 'class="scored"' in page and "rows.jsonl:" in page
    report = json.loads(Path("runs/x/preview.json").read_text())
    assert report["train"]["rows"] == 32 and report["held_out"]["rows"] == 8
    assert 0 < report["train"]["scored_tokens"] < report["train"]["tokens"]
    assert not list(Path("runs/x").glob("*checkpoints*"))


def test_bad_rows_are_named_before_any_weight_is_read(config, failure):
    Path("rows.jsonl").write_text('{"prefix": "a"}\n')
    message = failure("preview", "--config", config(data={"source": "rows.jsonl"}))
    assert "rows.jsonl:1: no column 'suffix'" in message
    assert "--rows: found '0', expected a whole number from 1" in failure(
        "preview", "--config=x.py", "--rows=0"
    )
