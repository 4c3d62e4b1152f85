"""The counts of a survey against those of the rows themselves, and its policies."""

import json

import pytest

from jaxtune.data.errors import DataError, NothingScored, RowError, TooLong
from jaxtune.data.examples import Chat, RowEncoder, columns
from jaxtune.data.images import Pictures
from jaxtune.data.sources import open_source
from jaxtune.data.survey import CHUNK, survey

ROWS = [{"prefix": "a " * (n % 7), "suffix": " the" * (1 + n % 5)} for n in range(300)]


@pytest.fixture
def prompt(tokenizer):
    def make(limit=200, **options):
        return RowEncoder(tokenizer("gemma"), columns(), limit, **options)

    return make


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_counts(write, prompt, workers):
    source, told = open_source(write("a.jsonl", ROWS)), []
    found = survey(source, prompt(), workers=workers, progress=told.append)
    examples = [prompt()(source[n], source.place(n)) for n in range(len(source))]
    assert found.rows.tolist() == list(range(300))
    assert found.lengths.tolist() == [len(example.tokens) for example in examples]
    assert found.scored.tolist() == [example.scored.sum() for example in examples]
    assert found.tokens == sum(found.lengths) and found.scored_tokens == sum(found.scored)
    assert found.share == found.scored_tokens / found.tokens
    assert found.longest == max(found.lengths)
    assert told == [CHUNK, 300]


BAD = [b'{"prefix": "a"', b"[]", b'{"prefix": "a"}', b'{"prefix": "\xff", "suffix": "b"}']


def test_malformed_rows_fail_or_are_skipped(write, prompt):
    good = [json.dumps(row).encode() for row in ROWS]
    lines = good[:]
    for number, line in zip((3, 100, 200, 299), BAD, strict=True):
        lines[number] = line
    source = open_source(write("a.jsonl", b"\n".join(lines)))
    with pytest.raises(RowError, match=r"a.jsonl:4: not valid JSON"):  # the first of them
        survey(source, prompt())
    found = survey(source, prompt(), malformed="skip")
    assert found.rows.tolist() == [n for n in range(300) if n not in (3, 100, 200, 299)]
    assert found.malformed.count == 4 and found.too_long.count == 0
    assert [text.split(": ")[0][-3:].lstrip(":l") for text in found.malformed.first] == [
        "4", "101", "201", "300"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="policy 'ignore' is not one of 'fail', 'skip'"):
        survey(source, prompt(), malformed="ignore")


def test_only_the_first_few_are_kept(write, prompt):
    source = open_source(write("a.jsonl", b"\n".join([b"{"] * 90 + [json.dumps(ROWS[0]).encode()])))
    found = survey(source, prompt(), malformed="skip")
    assert found.malformed.count == 90 and len(found.malformed.first) == 5


def test_long_rows_are_skipped_or_cut_and_counted(write, prompt):
    source = open_source(write("a.jsonl", ROWS))
    lengths = survey(source, prompt()).lengths
    limit = int(lengths.max()) - 3
    with pytest.raises(TooLong, match=r"a.jsonl:\d+: the row has"):
        survey(source, prompt(limit))
    with pytest.raises(TooLong):
        survey(source, prompt(limit), malformed="skip")  # another policy decides
    found = survey(source, prompt(limit, too_long="skip"))
    assert found.too_long.count == (lengths > limit).sum() > 0
    assert found.rows.tolist() == [n for n in range(300) if lengths[n] <= limit]
    cut = survey(source, prompt(limit, too_long="cut_prefix"))
    assert cut.cut == (lengths > limit).sum()
    assert cut.cut_tokens == (lengths - limit).clip(0).sum() and cut.longest == limit


def test_the_longest_row_is_named_and_long_ones_are_counted(write, prompt):
    rows = [{"prefix": "a " * n, "suffix": " b"} for n in (3, 40, 90, 60, 5)]
    source = open_source(write("a.jsonl", rows))
    told = r"a\.jsonl:3: the row has 94 tokens .* the longest of 3 such rows, out of 5$"
    with pytest.raises(TooLong, match=told) as error:
        survey(source, prompt(40))
    assert error.value.length == len(prompt()(rows[2], "").tokens)
    with pytest.raises(TooLong, match=r'a\.jsonl:3: .* data.too_long to "skip" or "cut_prefix"$'):
        survey(source, prompt(80))


def test_a_row_with_nothing_scored_fails_or_is_skipped(write, prompt):
    source = open_source(write("a.jsonl", [*ROWS, {"prefix": "a", "suffix": ""}]))
    with pytest.raises(NothingScored, match=r"a.jsonl:301: no token is scored"):
        survey(source, prompt(too_long="skip"))
    found = survey(source, prompt(), malformed="skip")
    assert len(found.rows) == 300 and found.malformed.count == 1


def test_a_conversation_without_an_answer_is_skipped_and_counted(write, tokenizer):
    asked = [{"role": "user", "content": "a"}]
    answered = [*asked, {"role": "assistant", "content": "b"}]
    rows = [{"messages": each} for each in (answered, asked, answered)]
    source = open_source(write("a.jsonl", rows))
    with pytest.raises(NothingScored, match=r"a.jsonl:2: no token is scored: the row has no comp"):
        survey(source, RowEncoder(tokenizer("gemma"), Chat(), 64))
    found = survey(source, RowEncoder(tokenizer("gemma"), Chat(), 64), malformed="skip")
    assert found.rows.tolist() == [0, 2] and found.malformed.count == 1
    assert "a.jsonl:2: no token is scored" in found.malformed.first[0]


def test_half_characters_are_skipped_and_counted(write, prompt):
    bad = [{"prefix": "a\ud800b", "suffix": "c"}, {"prefix": "a", "suffix": "b", "more": "\udfff"}]
    source = open_source(write("a.jsonl", [*ROWS, *bad]))
    with pytest.raises(RowError, match=r"a.jsonl:301: column 'prefix' contains half of a char"):
        survey(source, prompt())
    found = survey(source, prompt(), malformed="skip")
    assert len(found.rows) == 300 and found.malformed.count == 2
    assert "a.jsonl:302: column 'more' contains half" in found.malformed.first[1]


def test_no_rows_left(write, prompt):
    source = open_source(write("a.jsonl", b"{\n{\n"))
    with pytest.raises(
        DataError, match=r"none of the 2 rows can be used; the first error: .*a.jsonl:1"
    ):
        survey(source, prompt(), malformed="skip")


def test_pictures_are_looked_for_and_counted(write, tokenizer, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    shown = ["a.png", ["a.png", "a.png"], "gone.png", "a.png", None, ["a.png", "gone.png"]]
    rows = [{"prefix": "a", "suffix": "b", "image": each} for each in shown]
    source = open_source(write("a.jsonl", rows))
    seeing = RowEncoder(tokenizer("gemma"), columns(), 64, pictures=Pictures(8, 6, 9999))
    with pytest.raises(RowError, match=r"a\.jsonl:3: picture .*/gone\.png: no such file"):
        survey(source, seeing)
    found = survey(source, seeing, malformed="skip")
    assert found.rows.tolist() == [0, 1, 3] and found.pictures.tolist() == [1, 2, 1]
    assert found.malformed.count == 3 and found.lengths.tolist() == [10, 16, 10]
    blind = survey(source, RowEncoder(tokenizer("gemma"), columns(), 64))
    assert len(blind.rows) == 6 and not blind.pictures.any()
