"""Patterns match what `re.fullmatch` matches, and none of them takes longer than a second."""

import contextlib
import random
import re
import time

import pytest

from jaxtune.tree.patterns import PatternError, Patterns, check

NAME = "model.language_model.layers.11.self_attn.q_proj"
USUAL = [  # as PEFT users and other trainers write them
    r".*\.(q_proj|v_proj)",
    r"model.language_model.*(up|down|q)_proj$",
    r"^(?!.*visual).*(?:q_proj|k_proj|v_proj|o_proj).*",
    r"(?:.*?(?:language|text).*?(?:self_attn|attn|mlp).*?(?:k_proj|v_proj|q_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:k_proj|v_proj|q_proj)))",
    r"layers\.(?:[0-9]|1[0-9])\.mlp.up_proj",
    r"(.*\.)?(layers\.\d+\.self_attn\.(q|k)_proj)$",
]
ATOMS = ["a", "b", "[ab]", "[^a]", ".", r"\d", r"\w", "a|b", "$", "^", r"\b", "(?=a)", "(?!b)"]
ATOMS += ["(?<=a)", "(?<!b.)", r"\Z", r"\n", "[a-c0-1]", r"[^\d]", r"\s", r"\S", r"\W", ""]
SUFFIXES = ["*", "+", "?", "{1,2}", "{2}", "{0,3}", "*?", "+?", "{2,}"]


def made(chosen: random.Random, depth: int) -> str:
    """A random pattern."""
    if not depth:
        return chosen.choice(ATOMS)
    inner = made(chosen, depth - 1)
    return chosen.choice(
        [
            inner + made(chosen, depth - 1),
            f"(?:{inner}|{made(chosen, depth - 1)})",
            f"({inner}){chosen.choice(SUFFIXES)}",
            f"(?:{inner}){chosen.choice(SUFFIXES)}",
            f"({inner})",
        ]
    )


def test_random_patterns_match_what_re_matches():
    chosen = random.Random(15)
    for _ in range(3000):
        pattern, patterns = made(chosen, chosen.randint(0, 3)), Patterns()
        for _ in range(4):
            text = "".join(chosen.choices("ab01. \n", k=chosen.randint(1, 6)))
            expected = bool(re.fullmatch(pattern, text))
            assert patterns.fullmatch(pattern, text) == expected, (pattern, text)


@pytest.mark.parametrize("pattern", USUAL)
def test_usual_patterns(pattern):
    patterns = Patterns()
    for name in (NAME, NAME.replace("q_", "up_"), NAME.replace("language", "visual"), "lm_head"):
        assert patterns.fullmatch(pattern, name) == bool(re.fullmatch(pattern, name))


@pytest.mark.parametrize(
    "pattern",
    [
        "(.*)*x",
        "(a|aa)*" * 30 + "c",
        "(" * 90 + "a" + "*)" * 90 + "b",
        "(.*)+" * 300 + "x",
        ".*" + ".*".join("abcdefghijk"),
        "((a?){50}){50}b",
        "(?:){4000000000}",
        "(?:|a?|b?){4000000000}c",
        "(" + "|" * 9000 + ")*x",
        "(?:(?=(?:(?=(?:(?=.*)*.*)*.*)*.*)*).)*q",
        "(" * 200 + ".*" + ")*" * 200 + "x",
        "(" * 4000 + ")" * 4000,
        "a" * 20_000,
        "(" * 150 + "a" + "|b)*" * 150,
    ],
)
def test_no_pattern_hangs(pattern):
    names = [f"{NAME}.{number}.{'a' * 40}" for number in range(560)]
    patterns, start = Patterns(), time.monotonic()
    with contextlib.suppress(PatternError):
        assert not any(patterns.fullmatch(pattern, name) for name in names)
    assert time.monotonic() - start < 5  # 1 s at most, on a machine that does nothing else


def test_the_work_of_many_patterns_is_bounded_together():
    patterns, start = Patterns(), time.monotonic()
    with pytest.raises(PatternError, match="takes too long to match: write it without nested"):
        for number in range(100_000):
            patterns.fullmatch(f"(?:(?=(?:(?=.*)*.*)*).)*{number}", NAME + "a" * 500)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", r"'\(' is not a valid regular expression: missing \)"),
        (r"(a)\1", "has a reference to a group, which jaxtune does not match"),
        ("(?i)a", r"has flags, such as \(\?i\)"),
        ("(?i:a)b", r"has flags, such as \(\?i:…\)"),
        ("(?<=a*)b", "is not a valid regular expression"),
        ("(a)?(?(1)b|c)", "has a condition on a group"),
        ("x" * 10_001, "has 10,001 characters: expected a pattern of at most 10,000"),
    ],
)
def test_what_is_refused(pattern, says):
    with pytest.raises(PatternError, match=says):
        check(pattern)
