"""The base checkpoint of an adapter, and checks that weights belong to that base."""

import dataclasses
import math
import os
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune import families
from jaxtune.adapters.lora import Lora, one_layer
from jaxtune.checkpoint.formats import bnb
from jaxtune.checkpoint.formats.tensors import CheckpointError, Tensors
from jaxtune.checkpoint.load import leaf_shapes, match_names, read_config, table_of
from jaxtune.checkpoint.origin import Origin
from jaxtune.checkpoint.peft import stacking
from jaxtune.checkpoint.peft.fingerprint import Fingerprint, named
from jaxtune.checkpoint.peft.stacking import Adapters, Linears
from jaxtune.checkpoint.placing import oriented, quantized
from jaxtune.checkpoint.save import stored_at
from jaxtune.checkpoint.sources import locate
from jaxtune.families import names
from jaxtune.families.names import Piece, Shape
from jaxtune.models.paligemma import Model
from jaxtune.quant import by_path, is_quantized, same

WHAT_TO_DO = (
    "If weights were trained too, write them: jaxtune.save_merged(model, jaxtune.merge(variables),"
    " …). Otherwise pass the checkpoint that was loaded as `base`"
)
ROUNDING = 2.0**-8  # bound on the relative error of a weight held in a narrower dtype


@dataclasses.dataclass(frozen=True)
class Base:
    """Checkpoint that adapters were trained on."""

    directory: Path
    family: families.Family
    model: Model
    stored: Tensors

    @classmethod
    def at(cls, source: str | os.PathLike, params: Mapping[str, Any]) -> "Base":
        """Opens a base from a directory or the Hub; untied if `params` have a head of their own."""
        directory = locate(source)
        raw, family, model = read_config(directory)
        tied = f"{model.tower}head/w" not in params
        model = model.clone(config=dataclasses.replace(model.config, tied=tied))
        return cls(directory, family, model, stored_at(directory, raw))

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Shape of every leaf of the model, by slash path."""
        return leaf_shapes(self.model)

    @property
    def linears(self) -> Linears:
        """Linear maps of the model, by their module names in transformers."""
        return stacking.linears(self.family.tables[-1], self.shapes)

    @property
    def others(self) -> list[str]:
        """Names of the checkpoint's modules that are not part of our model."""
        found = names.matching(self.family.other, self.stored.tensors)
        return [name.removesuffix(".weight") for name in found if name.endswith(".weight")]

    def smallest(self, adapters: Adapters) -> Piece:
        """Returns the piece of the smallest weight with an adapter, or of its first layer."""
        pieces = [piece for parts in self.linears.values() for piece in parts]
        return min(
            (piece for piece in pieces if piece.path in adapters and not piece.layer),
            key=lambda piece: math.prod(self.shapes[piece.path]),
        )

    def idle(self, adapters: Adapters) -> list[str]:
        """Returns weights that have no adapter but share a fused module with DoRA adapters."""
        if all(adapter.magnitude is None for adapter in adapters.values()):
            return []
        paths = [[piece.path for piece in parts] for parts in self.linears.values()]
        partly = [each for each in paths if any(path in adapters for path in each)]
        return sorted({path for each in partly for path in each if path not in adapters})

    def check(self, sample: Piece, weight: Any, started: Adapters) -> None:
        """Raises if a weight in memory differs from the checkpoint's.

        Args:
          sample: piece of the weight that is compared.
          weight: its values in memory, of one layer.
          started: adapters as they were right after an initialisation that subtracted them from
            the weights (PiSSA); empty if the weights are as published.
        """
        if not self.stored.tensors:
            return  # a model made from a config.json alone has no weights to compare
        place = self.piece_of(sample.path, sample.layer)
        first = one_layer(started[sample.path], sample.layer) if started else None
        if not self._holds(place, weight, first):
            raise CheckpointError(_explain_other_weight(self.directory, place, bool(started)))

    @cached_property
    def parts(self) -> tuple[Piece, ...]:
        """Pieces of the checkpoint's tensors that make up each leaf; raises if they do not fit."""
        table = table_of(self.family, self.model, self.stored)
        return match_names(table, self.shapes, self.stored, self.family.other, self.directory)

    def piece_of(self, path: str, layer: int | None) -> Piece:
        """Returns the piece of the checkpoint that holds a leaf or a layer of it."""
        return next(piece for piece in self.parts if (piece.path, piece.layer) == (path, layer))

    def fingerprint(self, like: Fingerprint | None = None) -> Fingerprint | None:
        """Returns the checkpoint's fingerprint, to compare with `like` if that is given.

        None if the checkpoint is only a config.json.
        """
        if not self.stored.tensors:
            return None
        packed = bnb.packed(self.stored)

        def read(piece: Piece, places: np.ndarray) -> np.ndarray:
            index = piece.index(places)
            if piece.theirs in packed:
                return bnb.values(self.stored, packed[piece.theirs], index)
            return self.stored.elements(piece.theirs, index).astype(np.float32)

        return Fingerprint.of(names.by_leaf(self.parts), packed, read, like)

    def held(self, params: Mapping[str, Any], changed: Collection[str]) -> Fingerprint:
        """Takes the fingerprint of weights in memory, without quantised and `changed` ones.

        With several processes, all of them must call this.
        """
        if not self.stored.tensors:
            return Fingerprint({})
        leaves = names.by_leaf(self.parts)
        plain = {
            path: params[path]
            for path in leaves
            if path in params and path not in changed and not is_quantized(params[path])
        }
        return Fingerprint.of_arrays(leaves, plain)

    def refuse_others(self, held: Fingerprint, published: Fingerprint | None) -> None:
        """Raises, naming the leaves, if weights in memory are not those of the checkpoint."""
        if published and (other := published.only(held.samples).differences(held)):
            raise CheckpointError(
                f"the variables are not the weights of {self.directory}, so the adapters alone"
                f" would not reproduce this model: {named(other)}. {WHAT_TO_DO}"
            )

    def _holds(self, place: Piece, weight: Any, first: Lora | None) -> bool:
        """Whether a weight equals the checkpoint's, less the product of its initial adapter.

        `first` is that adapter if its initialisation changed the weight (PiSSA), and else None.
        """
        packed = bnb.packed(self.stored)
        if is_quantized(weight):
            return same(weight, quantized(self.stored, packed, place, weight.kind))
        if place.theirs in packed:
            return False
        published = oriented(self.stored.read, place).astype(np.float32)
        expected = published - first.scale * (first.a @ first.b) if first else published
        slack = ROUNDING * np.abs(expected) + 1e-5 * np.abs(published).max()
        return bool((np.abs(weight.astype(np.float32) - expected) <= slack).all())


def _explain_other_weight(directory: Path, place: Piece, started: bool) -> str:
    if started:
        return (
            f"{place.path} of the variables is not {place.theirs} of {directory} minus the product"
            " of the adapters in `initial`: pass the variables that add_lora returned as `initial`"
        )
    return (
        f"{place.path} of the variables is not {place.theirs} of {directory}, so the adapters alone"
        " would not reproduce this model. If they were initialised with init='pissa', pass the"
        f" variables that add_lora returned as `initial`. {WHAT_TO_DO}"
    )


def params_of(variables: Mapping) -> dict[str, Any]:
    """Returns the parameters by slash path; raises if the variables have none."""
    if "params" not in variables:
        raise CheckpointError(
            f"the variables have no 'params' (found {', '.join(map(str, variables)) or 'nothing'}):"
            " pass all the variables of the model"
        )
    return by_path(variables["params"])


def refuse_other_base(
    noted: Fingerprint, model: Model, params: Mapping[str, Any], label: str
) -> None:
    """Raises, naming the leaves, if an adapter was trained on another base than the model's origin.

    Args:
      noted: fingerprint in the adapter's file.
      model: the model that the adapter is loaded into.
      params: its parameters by slash path.
      label: the adapter as error messages name it.
    """
    base = Base.at(Origin.of(model).path, params)
    with base.stored:
        found = base.fingerprint(noted)
    if found is None or not (different := noted.differences(found)):
        return
    raise CheckpointError(
        f"{label} was trained on a different base than {model.origin}: {len(different)} of "
        f"{len(found.samples)} leaves differ. {named(different)}. Load the "
        "base it was trained on, or call jaxtune.load_adapter(…, any_base=True) if this is intended"
    )
