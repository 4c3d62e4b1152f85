"""Published checkpoint from which a model was loaded: path, tokenizer and stop tokens."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxtune.checkpoint.formats.tensors import CheckpointError
from jaxtune.data.errors import DataError
from jaxtune.data.tokenizer import Tokenizer, beside
from jaxtune.data.vocabulary import stop_ids
from jaxtune.models.paligemma import Model

NPZ = ".npz"


@dataclass(frozen=True)
class Origin:
    """Path of a checkpoint (a directory or an .npz file), with its tokenizer and stop tokens.

    `jaxtune.load` sets it as `model.origin`. It is ignored when models are compared: one
    architecture loaded from two paths shares one compiled program.
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
        """Returns a model's origin; raises if it is unset or its directory lacks config.json."""
        origin = model.origin
        if isinstance(origin, cls) and (origin.is_npz or (origin.path / "config.json").is_file()):
            return origin
        raise CheckpointError(
            f"the model's origin is {origin or 'not set'}: expected a checkpoint with config.json "
            "and tokenizer files. Set it with `model.clone(origin=jaxtune.Origin(directory))`"
        )

    @property
    def is_npz(self) -> bool:
        """Whether the checkpoint is an .npz file of big_vision instead of a directory."""
        return self.path.suffix == NPZ

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the checkpoint, opened on first access."""
        return Tokenizer.open(beside(self.path) if self.is_npz else self.path)

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer.

        They come from generation_config.json, or else from config.json; for an .npz file, which
        has neither, from its tokenizer. Empty if none of these is there or names any.
        """
        if not self.is_npz:
            return stop_ids(self.path)
        try:
            return self.tokenizer.stops
        except DataError:
            return ()
