"""Text of tokens as they come: the same as that of decoding them all, from a few at a time."""

import random

import pytest

from jaxtune.decoding.incremental import WAITING, TextStream
from tests.data import made

TEXT = " naïve 😀😀 ☃ déjà  vu\n\n中文 日本語 the lazy dog \ufffd\ufffd <eos> </s>" * 4


class Counting:
    """A tokenizer that remembers how many tokens it decoded at most at once."""

    def __init__(self, tokenizer):
        self.piece, self._decode, self.most = tokenizer.piece, tokenizer.decode, 0

    def decode(self, ids, **options):
        self.most = max(self.most, len(ids))
        return self._decode(ids, **options)


def streamed(tokenizer, tokens):
    """The settled pieces of tokens; after each, the text is that of the tokens so far."""
    stream, pieces = TextStream(tokenizer), []
    for count, token in enumerate(tokens, 1):
        pieces.append(stream.push(token))
        so_far = "".join(pieces)
        whole = tokenizer.decode(tokens[:count], continues=True)
        assert so_far + stream.waiting == whole
    return pieces


def sequences(tokenizer, kind):
    """Texts, arbitrary tokens, and arbitrary bytes among tokens of text."""
    chance = random.Random(kind)
    yield tokenizer.encode(TEXT, continues=True)
    everything = range(len(tokenizer))
    single = [n for n in everything if len(tokenizer.piece(n)) == 1 or "<0x" in tokenizer.piece(n)]
    for count in range(25):
        pool = single if count % 2 else everything
        yield chance.choices(pool, k=40)
        text = tokenizer.encode("the quick 中 brown", continues=True)
        yield [*text, *chance.choices(single, k=9), *text, *chance.choices(everything, k=3), *text]


@pytest.mark.parametrize("kind", made.KINDS)
def test_the_text_is_that_of_decoding_all_tokens(tokenizer, kind):
    ours = tokenizer(kind)
    for tokens in sequences(ours, kind):
        streamed(ours, tokens)


@pytest.mark.parametrize("kind", made.KINDS)
def test_settled_text_never_changes(tokenizer, kind):
    ours = tokenizer(kind)
    for tokens in sequences(ours, kind):
        stream, settled = TextStream(ours), ""
        for token in tokens:
            settled += stream.push(token)
        assert ours.decode(tokens, continues=True).startswith(settled)


@pytest.mark.parametrize("kind", ["gemma", "llama", "phi", "mistral", "sentencepiece_spaced"])
def test_only_a_few_tokens_are_decoded_at_a_time(tokenizer, kind):
    for text in ("the quick brown fox ", "naïve 😀 中文 "):
        counting = Counting(tokenizer(kind))
        stream = TextStream(counting)
        tokens = tokenizer(kind).encode(text * 60, continues=True)
        pieces = [stream.push(token) for token in tokens]
        assert "".join(pieces) + stream.waiting == text * 60
        assert counting.most <= 2 * WAITING < len(tokens)


def test_bytes_without_end_that_are_no_characters(tokenizer):
    ours = tokenizer("llama")
    (stray,) = [n for n in range(len(ours)) if ours.piece(n) == "¢"]  # the byte 0xa2
    counting = Counting(ours)
    stream = TextStream(counting)
    pieces = [stream.push(stray) for _ in range(500)]
    assert "".join(pieces) + stream.waiting == "\ufffd" * 500
    assert counting.most <= 3 * WAITING
