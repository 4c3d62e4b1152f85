"""Adapters without their base, in PEFT's layout: written for others to load, and read back."""

import dataclasses
import difflib
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxtune import families, tree
from jaxtune.adapters import lora
from jaxtune.adapters.lora import Lora, one_layer
from jaxtune.checkpoint.formats import bnb
from jaxtune.checkpoint.formats.safetensors import (
    PYTORCH,
    CheckpointError,
    Safetensors,
    new_directory,
    refuse_existing,
    write_sharded,
)
from jaxtune.checkpoint.formats.tensors import Tensors
from jaxtune.checkpoint.hub import REPO_ID, locate
from jaxtune.checkpoint.load import leaf_shapes, match_names, read, table_of
from jaxtune.checkpoint.peft import adapter_config, stacking
from jaxtune.checkpoint.peft.fingerprint import Fingerprint
from jaxtune.checkpoint.peft.stacking import Adapters, Linears, Modules
from jaxtune.checkpoint.placing import cast, oriented, quantized
from jaxtune.checkpoint.processes import gathered, in_step
from jaxtune.checkpoint.save import origin_of, stored_at, written_dtype
from jaxtune.families import names
from jaxtune.families.names import Piece, Shape
from jaxtune.models.paligemma import Model
from jaxtune.quant import by_path, is_quantized, same

REPORT = "export.json"  # what was measured when it was exported, beside its files
ROUNDING = 2.0**-8  # the most that holding a weight in a narrower dtype changes it by, relatively


def save_adapter(
    variables: Mapping,
    directory: str | os.PathLike,
    base: str | os.PathLike,
    *,
    initial: Mapping | None = None,
    dtype: DTypeLike | None = "float32",
    rslora: bool = False,
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the adapters alone, as `PeftModel.from_pretrained(model, directory)` reads them.

    `base` is the checkpoint they stand on, a directory or Hub repo id; `name` is what their config
    calls it, if that differs. A start that changed the base (PiSSA) needs `initial`, the variables
    right after `add_lora`: the difference is written, of twice the rank. `rslora` decides how the
    scale is spelled, not what it is. With many processes, all of them call this.
    """
    target = Path(directory).expanduser()
    with in_step():
        kind = written_dtype(dtype)
        params = _params(variables)
        standing = _Base.at(base, params)
        adapters = _fitting(variables, standing, "the variables")
        started = {} if initial is None else _fitting(initial, standing, "`initial`")
        if jax.process_index() == 0:
            refuse_existing(target, overwrite, adapter_config.CONFIG_NAME)
    sample = standing.smallest(adapters)
    weight = jax.tree.map(gathered, one_layer(params[sample.path], sample.layer))
    norms = {
        path: gathered(stacking.column_norms(params[path])) for path in standing.idle(adapters)
    }
    adapters, started = (jax.tree.map(gathered, each) for each in (adapters, started))
    with standing.stored, in_step():
        if jax.process_index() == 0:
            adapters = _since(started, adapters)
            standing.check(sample, weight, started)
            fingerprint = standing.fingerprint(sample.path, sample.layer, weight)
            adapter = _Written.of(adapters, norms, standing, fingerprint)
            with new_directory(target, overwrite, adapter_config.CONFIG_NAME) as partial:
                adapter.write(partial, kind, rslora, _named(name or base))
    return target


def load_adapter(
    model: Model, variables: Mapping, directory: str | os.PathLike, *, any_base: bool = False
) -> dict:
    """Variables with an adapter that PEFT or `save_adapter` wrote, from a directory or Hub repo.

    It must be one for this model; one of ours must have been trained beside these very weights,
    unless `any_base` is set. Layers without an adapter get one that does nothing.
    """
    if variables.get("lora"):
        raise CheckpointError(
            "the variables hold adapters already: merge them first (jaxtune.merge), or give"
            " variables without"
        )
    params = _params(variables)
    family = read(origin_of(model))[1]
    source = locate(directory)
    settings = adapter_config.Settings.read(source)
    _refuse_changed(source)
    with Safetensors.open(_weights(source)) as stored:
        found = _without_towers(stacking.read(stored, settings), family.other)
        metadata = stored.metadata
    table = names.choose(family.tables, [f"{module}.weight" for module in found])
    modules = stacking.linears(table, leaf_shapes(model))
    if problems := list(_misfits(found, modules, settings)):
        title = f"{source}{settings.base} does not fit the model from {model.origin}:"
        raise CheckpointError(adapter_config.listed(title, problems))
    if not any_base and (noted := Fingerprint.noted(metadata)):
        _refuse_other_base(noted, model, params, f"{source}{settings.base}")
    adapters = {
        path: stacking.stacked(parts, params[path], settings)
        for path, parts in stacking.by_path(found, modules, stacking.ranks_noted(metadata)).items()
    }
    _refuse_idle(adapters, params, source)
    return {**variables, "lora": tree.unflatten(adapters)}


@dataclasses.dataclass(frozen=True)
class _Base:
    """The checkpoint that adapters stand on."""

    directory: Path
    family: families.Family
    model: Model
    stored: Tensors

    @classmethod
    def at(cls, source: str | os.PathLike, params: Mapping[str, Any]) -> "_Base":
        """A base in a directory or on the Hub, with a head of its own if `params` have one."""
        directory = locate(source)
        raw, family, model = read(directory)
        tied = f"{model.tower}head/w" not in params
        model = model.clone(config=dataclasses.replace(model.config, tied=tied))
        return cls(directory, family, model, stored_at(directory, raw))

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Those of our leaves."""
        return leaf_shapes(self.model)

    @property
    def linears(self) -> Linears:
        """Its linear maps, by the names of the modules that transformers makes for them."""
        return stacking.linears(self.family.tables[-1], self.shapes)

    @property
    def others(self) -> list[str]:
        """Modules it holds beside the decoder's."""
        found = names.matching(self.family.other, self.stored.tensors)
        return [name.removesuffix(".weight") for name in found if name.endswith(".weight")]

    def smallest(self, adapters: Adapters) -> Piece:
        """The smallest weight that has an adapter, or its first layer."""
        pieces = [piece for parts in self.linears.values() for piece in parts]
        return min(
            (piece for piece in pieces if piece.path in adapters and not piece.layer),
            key=lambda piece: math.prod(self.shapes[piece.path]),
        )

    def idle(self, adapters: Adapters) -> list[str]:
        """Weights without an adapter, fused with others whose adapters have magnitudes."""
        if all(adapter.magnitude is None for adapter in adapters.values()):
            return []
        paths = [[piece.path for piece in parts] for parts in self.linears.values()]
        partly = [each for each in paths if any(path in adapters for path in each)]
        return sorted({path for each in partly for path in each if path not in adapters})

    def check(self, sample: Piece, weight: Any, started: Adapters) -> None:
        """Refuse a weight that is not this checkpoint's, less what adapters took at the start."""
        if not self.stored.tensors:
            return  # a model made from a bare config.json: there is nothing to stand on
        place = self.place(sample.path, sample.layer)
        first = one_layer(started[sample.path], sample.layer) if started else None
        if not self._holds(place, weight, first):
            raise CheckpointError(_explain_other_weight(self.directory, place, bool(started)))

    def place(self, path: str, layer: int | None) -> Piece:
        """Where the checkpoint holds a layer of one of our leaves."""
        table = table_of(self.family, self.model, self.stored)
        parts = match_names(table, self.shapes, self.stored, self.family.other, self.directory)
        return next(piece for piece in parts if (piece.path, piece.layer) == (path, layer))

    def fingerprint(self, path: str, layer: int | None, weight: Any) -> Fingerprint | None:
        """What tells this checkpoint from others of its shapes; nothing tells a bare config.json.

        `weight` is the one in memory, to tell a checkpoint by that holds codes.
        """
        if not self.stored.tensors:
            return None
        place = self.place(path, layer)
        coded = place.theirs in bnb.packed(self.stored)
        return Fingerprint.of(path, layer, weight if coded else oriented(self.stored.read, place))

    def _holds(self, place: Piece, weight: Any, first: Lora | None) -> bool:
        """Whether a weight is what the checkpoint has there, less a first adapter."""
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
            f"{place.path} of the variables is not {place.theirs} of {directory} less what the"
            " adapters of `initial` took out of it: give the variables as add_lora returned them"
        )
    return (
        f"{place.path} of the variables is not {place.theirs} of {directory}, so that the adapters"
        " alone would not give this model back. If they began with init='pissa', give the variables"
        " right after add_lora as `initial`. If weights were trained too, write them:"
        " jaxtune.save_merged(model, jaxtune.merge(variables), …). Otherwise give the checkpoint"
        " that was loaded as `base`"
    )


def _params(variables: Mapping) -> dict[str, Any]:
    if "params" not in variables:
        raise CheckpointError(
            f"the variables hold {', '.join(map(str, variables)) or 'nothing'}, and no 'params':"
            " give all of them, not a part"
        )
    return by_path(variables["params"])


def _fitting(variables: Mapping, base: _Base, whose: str) -> dict[str, Lora]:
    """The adapters by path; all that cannot stand on the base are listed at once."""
    adapters = lora.adapters(variables)
    if not adapters:
        raise CheckpointError(
            f"{whose} hold no adapters: give what jaxtune.add_lora returned, or write whole weights"
            " with jaxtune.save_merged"
        )
    linear = {piece.path for parts in base.linears.values() for piece in parts}
    problems = [
        f"  {path}: a {adapter.a.shape} and b {adapter.b.shape}, the base has "
        + (f"a weight {base.shapes[path]}" if path in linear else "no such linear map")
        for path, adapter in adapters.items()
        if path not in linear or not adapter.stands_on(base.shapes[path])
    ]
    if len({adapter.magnitude is None for adapter in adapters.values()}) > 1:
        problems.append("  some have a magnitude (DoRA) and some do not: PEFT has all or none")
    if problems:
        raise CheckpointError(
            adapter_config.listed(f"the adapters of {whose} do not fit {base.directory}:", problems)
        )
    return adapters


def _since(started: Adapters, adapters: Adapters) -> Adapters:
    """Adapters that do on the published weights what these do on what was left at the start."""
    if not started:
        return adapters
    unlike = [
        f"  {path}"
        for path in sorted(started.keys() | adapters.keys())
        if path not in started
        or path not in adapters
        or not np.array_equal(started[path].scale, adapters[path].scale)
    ]
    if unlike:
        raise CheckpointError(
            adapter_config.listed(
                "`initial` has not the same adapters, with the same scales:", unlike
            )
        )
    return {
        path: adapter.replace(
            a=np.concatenate([adapter.a, started[path].a], axis=-1),
            b=np.concatenate([adapter.b, -started[path].b], axis=-2),
        )
        for path, adapter in adapters.items()
    }


@dataclasses.dataclass(frozen=True)
class _Written:
    """An adapter as its files will tell it."""

    modules: Modules
    targets: list[str] | str
    dropout: float
    metadata: Mapping[str, str]

    @classmethod
    def of(
        cls,
        adapters: Adapters,
        norms: Mapping[str, np.ndarray],
        base: _Base,
        fingerprint: Fingerprint | None,
    ) -> "_Written":
        """Our adapters on the modules of their base."""
        modules = {
            module: stacking.joined(pieces, adapters, norms)
            for module, pieces in base.linears.items()
            if any(piece.path in adapters for piece in pieces)
        }
        beside = [*base.others, *(base.linears.keys() - modules.keys())]
        # PEFT has one for all.
        dropout = max(np.float32(adapter.dropout.max()) for adapter in adapters.values())
        return cls(
            modules,
            adapter_config.targets(modules, beside),
            float(str(dropout)),  # 0.1, and not what float32 makes of it
            PYTORCH
            | stacking.noted_ranks(adapters, base.linears)
            | (fingerprint.note if fingerprint else {}),
        )

    def write(self, directory: Path, kind: np.dtype | None, rslora: bool, named: Mapping) -> None:
        """The two files that PEFT looks for."""
        config = adapter_config.described(
            ranks={module: len(adapter.a) for module, adapter in self.modules.items()},
            scales={module: adapter.scale for module, adapter in self.modules.items()},
            rslora=rslora,
            dora=any(adapter.magnitude is not None for adapter in self.modules.values()),
        )
        config |= {"lora_dropout": self.dropout, "target_modules": self.targets, **named}
        text = json.dumps(dict(sorted(config.items())), indent=2, ensure_ascii=False)
        (directory / adapter_config.CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
        arrays = stacking.tensors(self.modules)
        plan = {name: (array.shape, kind or array.dtype) for name, array in arrays.items()}
        [file] = write_sharded(
            directory,
            plan,
            lambda name: cast(arrays[name], plan[name][1], name),
            sys.maxsize,
            self.metadata,
        )
        file.rename(directory / adapter_config.WEIGHTS_NAME)


def _named(base: str | os.PathLike) -> dict[str, str | None]:
    """The base as PEFT's config has it, where a revision stands apart."""
    text = os.fspath(base)
    repository = None if Path(text).exists() else REPO_ID.fullmatch(text)
    path, revision = (repository["repo"], repository["revision"]) if repository else (text, None)
    return {"base_model_name_or_path": path, "revision": revision}


def _weights(directory: Path) -> Path:
    """The file PEFT reads; without it the directory, which tells what it holds instead."""
    file = directory / adapter_config.WEIGHTS_NAME
    return file if file.is_file() else directory


def _without_towers(found: Modules, other: Sequence[str]) -> Modules:
    """Leave out what does nothing beside towers we lack, as training on text alone leaves it."""
    idle = {name for name in names.matching(other, found) if not found[name].b.any()}
    return {name: adapter for name, adapter in found.items() if name not in idle}


def _misfits(found: Modules, modules: Linears, settings: adapter_config.Settings) -> Iterator[str]:
    for module, adapter in found.items():
        if module not in modules:
            near = difflib.get_close_matches(module, modules, n=1, cutoff=0.5)
            hint = f" (nearest: {near[0]})" if near else ""
            yield f"  unknown  {module}: the model has no such linear map{hint}"
            continue
        parts = {"a": adapter.a.shape[1:], "b": adapter.b.shape[:1]}
        if adapter.magnitude is not None:
            parts["magnitude"] = adapter.magnitude.shape
        outside, inside = modules[module][0].shape
        for part, (size,) in parts.items():
            if size != (wanted := inside if part == "a" else outside):
                yield f"  shape    {module}: {stacking.PARTS[part]} has {size}, the model {wanted}"
    for module in modules:
        if module not in found and settings.targeted(module):
            yield f"  missing  {module}: the config's target_modules promise it"


def _refuse_changed(source: Path) -> None:
    """Stop at files that are not those which were verified when this adapter was exported."""
    report = source / REPORT
    if not report.is_file():
        return
    known = json.loads(report.read_bytes())["files"]
    for name in (adapter_config.CONFIG_NAME, adapter_config.WEIGHTS_NAME):
        with (source / name).open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if name in known and found != known[name]["sha256"]:
            raise CheckpointError(
                f"{source / name} is not the file that was verified when this adapter was exported:"
                f" its SHA-256 is {found}, and {report} says {known[name]['sha256']}. Export it"
                f" anew, or remove {REPORT} if it was changed on purpose"
            )


def _refuse_other_base(
    noted: Fingerprint, model: Model, params: Mapping[str, Any], whose: str
) -> None:
    """Stop at an adapter that was trained beside other weights of the same shapes."""
    if noted.path not in params:
        return
    weight = jax.tree.map(gathered, one_layer(params[noted.path], noted.layer))
    base = _Base.at(origin_of(model), params)
    with base.stored:
        found = base.fingerprint(noted.path, noted.layer, weight)
    if found and not noted.near(found):
        raise CheckpointError(
            f"{whose} was trained beside another base than {model.origin}, where {noted.path} is "
            f"{noted.apart(found):.2g} of its size away from the one it knows: give the base it "
            "was trained on, or call jaxtune.load_adapter(…, any_base=True) if this is meant"
        )


def _refuse_idle(adapters: Adapters, params: Mapping[str, Any], source: Path) -> None:
    """Stop at an adapter that changes nothing: it was never trained, or is not what was meant."""
    for path, adapter in adapters.items():
        if (adapter.scale[..., None, None] * adapter.b).any():
            return
        if adapter.magnitude is not None:
            norms = stacking.column_norms(params[path])
            if not jnp.allclose(adapter.magnitude, norms, rtol=1e-3, atol=0):
                return
    raise CheckpointError(
        f"{source}: every lora_B is zero, so that this adapter would change nothing: it was saved"
        " before any training"
    )
