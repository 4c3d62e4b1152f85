"""The tokenizers and files of rows that tests of `data` use, shared with those of previews."""

from tests.data.conftest import checkpoint, reference, tokenizer, write

__all__ = ["checkpoint", "reference", "tokenizer", "write"]
