"""Config files are Python: what they return is taken, and errors in them are told by their line."""

import os
import sys
from pathlib import Path

import pytest

from jaxtune.config.load import difference, load
from tests.config.jobs import LEAST, PALETTE, refusal


def test_an_argument_after_a_colon_is_handed_on(write):
    file = write(f"def get_config(size='3'):\n    return {LEAST!r} | dict(seed=int(size))\n")
    assert load(file).seed == 3
    assert load(f"{file}:7").seed == 7
    assert "run.py, line 2: ValueError: invalid literal" in refusal(load, f"{file}:large")
    write("def get_config(size): return {}\n")
    assert "get_config(size) cannot be called with no argument; " in refusal(load, file)
    assert "--config=run.py:ARGUMENT" in refusal(load, file)
    write("def get_config(): return {}\n")
    assert "get_config() cannot be called with 'large'; " in refusal(load, f"{file}:large")
    write(PALETTE)  # whose get_config says what it returns
    assert "get_config() cannot be called with 'large'; " in refusal(load, f"{file}:large")
    assert load(write(PALETTE, "run.py:large")).trainable.rank == 16


@pytest.mark.parametrize(
    "text, expected",
    [
        ("x = 1\ny = 3 +\n", "run.py, line 2: SyntaxError: invalid syntax\n  y = 3 +"),
        (
            "def get_config():\n\n    return path / 3\n",
            "run.py, line 3: NameError: name 'path' is not defined\n  return path / 3",
        ),
        (
            "import json\njson.loads('{')\n",
            "run.py, line 2: JSONDecodeError: Expecting property name",
        ),
        ("import nowhere_to_be_found\n", "run.py, line 1: ModuleNotFoundError: No module named"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config():\n    config = ConfigDict()\n    config.optim.lr = 1.0\n",
            "run.py, line 4: AttributeError: \"'optim'\"; create the section before you set its",
        ),
        (
            "from ml_collections import ConfigDict, config_dict\n"
            "def get_config():\n"
            "    return ConfigDict(dict(seed=config_dict.required_placeholder(int)))\n",
            "run.py: RequiredValueError: None value found in required reference",
        ),
        ("def get_config():\n    return get_config()\n", "run.py, line 2: RecursionError"),
        (b"x = '\xff'\n", "run.py, line 1: SyntaxError: (unicode error) 'utf-8' codec"),
        (b"x = '\x00'\n", "run.py: SyntaxError: source code string cannot contain null bytes"),
        ("", "run.py has no get_config(); define a function"),
        ("get_config = {}\n", "run.py has no get_config(); define a function"),
        ("exit(3)\n", "run.py, line 1: SystemExit: a config file must not end the program; remove"),
        ("x = " + "-" * 100_000 + "1\n", "run.py: MemoryError"),
        ("x = " + "(" * 300 + "\n", "run.py, line 1: SyntaxError: too many nested parentheses"),
        ("raise ValueError('x' * 10_000)\n", f"run.py, line 1: ValueError: {'x' * 799}…\n  raise"),
        ("def get_config(): return 3\n", "run.py: get_config() returned 3, expected a ConfigDict"),
    ],
)
def test_an_error_in_the_file_is_reported_with_its_line(write, text, expected):
    assert refusal(load, write(text)).startswith(expected)


def test_a_file_that_is_not_there_is_named_with_the_nearest(write):
    write(PALETTE, "palette_demo.py")
    problem = "paletdemo.py: no such file; did you mean palette_demo.py?"
    assert refusal(load, "paletdemo.py") == problem
    assert refusal(load, "away/x.py") == "away/x.py: no such file"
    assert ". cannot be read (Is a directory); expected a Python file" in refusal(load, ".")


def test_what_is_no_file_of_moderate_size_is_refused(write, tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    problem = "pipe.py is not a regular file; expected a Python file with get_config()"
    assert refusal(load, "pipe.py") == problem
    file = write("#" * 1_048_577)
    assert refusal(load, file).startswith("run.py has 1,048,577 bytes, and such a file at most")
    for name in ("x" * 5000, "x" * 5000 + ".py:3"):
        assert refusal(load, name).startswith("xxxxxx") and len(refusal(load, name)) < 200
    assert "a\\x00b cannot be read (embedded null byte)" in refusal(load, "a\0b")
    assert refusal(load, "~nobody-of-this-name/x.py").startswith("~nobody")


def test_what_a_file_prints_goes_to_standard_error(write, capsys):
    load(write(f"print('loaded')\ndef get_config():\n    return {LEAST!r}\n"))
    assert capsys.readouterr() == ("", "loaded\n")


def test_a_config_may_start_from_its_neighbour_which_leaves_no_trace(write, tmp_path):
    write(PALETTE, "real.py")
    text = (
        "import real\n"
        "def get_config():\n"
        "    config = real.get_config()\n"
        "    config.model.path = 'demo'\n"
        "    return config\n"
    )
    demo = write(text, "demo.py")
    changed = ['model.path: "google/gemma-3-270m" -> "demo"']
    assert difference(load("real.py"), load(demo)) == changed
    assert "real" not in sys.modules and str(tmp_path) not in sys.path
    assert not Path("__pycache__").exists()
    # And no bytecode of the old one is taken for the new.
    write(PALETTE.replace("rank=16", "rank=17"), "real.py")
    assert load(demo).trainable.rank == 17
    write("def get_config():\n    return 1 / 0\n", "real.py")
    expected = "real.py, line 2: ZeroDivisionError: division by zero\n  return 1 / 0"
    assert refusal(load, demo) == expected
