"""The published checkpoint a model was loaded from: its path, its tokenizer and its stop tokens."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxtune.checkpoint.formats.tensors import CheckpointError
from jaxtune.data.errors import DataError
from jaxtune.data.tokenizer import Tokenizer, beside
from jaxtune.models.paligemma import Model

NPZ = ".npz"


@dataclass(frozen=True)
class Origin:
    """A checkpoint's directory or .npz file, and what its files say beside the weights.

    `jaxtune.load` leaves it on the model as `model.origin`. It does not take part in comparing
    models: the same architecture loaded from two places is one compiled program.
    """

    path: Path

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path))

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    @classmethod
    def of(cls, model: Model) -> "Origin":
        """The origin of a model; an error if it has none, or if that is not there any more."""
        origin = model.origin
        if isinstance(origin, cls) and (origin.is_npz or (origin.path / "config.json").is_file()):
            return origin
        raise CheckpointError(
            f"the model's origin is {origin or 'not set'}: config.json and tokenizer files are "
            "carried along from there. Give it with `model.clone(origin=jaxtune.Origin(directory))`"
        )

    @property
    def is_npz(self) -> bool:
        """Whether it is one .npz file of big_vision instead of a directory."""
        return self.path.suffix == NPZ

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, opened when it is first asked for."""
        return Tokenizer.open(beside(self.path) if self.is_npz else self.path)

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer.

        They are those of generation_config.json, else of config.json; an .npz file has neither,
        and there they are the tokenizer's. Nothing is known where there is no tokenizer.
        """
        for name in ("generation_config.json", "config.json"):
            file = self.path / name
            found = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
            if found is not None:
                return tuple(found) if isinstance(found, list) else (found,)
        try:
            return self.tokenizer.stops if self.is_npz else ()
        except DataError:
            return ()
