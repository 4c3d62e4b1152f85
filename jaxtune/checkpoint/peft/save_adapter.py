"""Writes adapters without their base, in the layout that PEFT reads."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxtune.adapters import lora
from jaxtune.adapters.lora import Lora, one_layer
from jaxtune.checkpoint import outgoing
from jaxtune.checkpoint.companions import TokenizerFiles
from jaxtune.checkpoint.dtypes import AUTO, dtype_name
from jaxtune.checkpoint.formats.safetensors import PYTORCH, write_sharded
from jaxtune.checkpoint.formats.tensors import CheckpointError
from jaxtune.checkpoint.formats.writing import new_directory, refuse_existing
from jaxtune.checkpoint.hub import REPO_ID
from jaxtune.checkpoint.peft import adapter_config, stacking
from jaxtune.checkpoint.peft.base import Base, params_of
from jaxtune.checkpoint.peft.fingerprint import Fingerprint
from jaxtune.checkpoint.peft.stacking import Adapters, Modules
from jaxtune.checkpoint.placing import cast
from jaxtune.checkpoint.processes import in_step
from jaxtune.families import names
from jaxtune.sharding import to_host


def save_adapter(
    variables: Mapping,
    directory: str | os.PathLike,
    base: str | os.PathLike,
    *,
    initial: Mapping | None = None,
    dtype: DTypeLike = "float32",
    rslora: bool = False,
    name: str | None = None,
    overwrite: bool = False,
    tokenizer: TokenizerFiles | None = None,
) -> Path | str:
    """Writes the adapters alone, for `PeftModel.from_pretrained(model, directory)`.

    With several processes, all of them must call this.

    Args:
      variables: the model's variables, with adapters.
      directory: directory to write, which may be a URL; it appears only once it is complete.
      base: checkpoint that the adapters were trained on: a directory, a URL or a Hub repository.
      initial: the variables right after `add_lora`, needed if that changed the base (PiSSA). The
        adapters written are then the difference from these, of twice the rank.
      dtype: dtype of the tensors that are written; "auto" keeps that of the adapters.
      rslora: whether the config expresses the scales as lora_alpha / √rank, and not as
        lora_alpha / rank; the scales themselves are the same.
      name: what the adapter's config calls the base, if not `base`.
      overwrite: whether an earlier adapter in the directory may be replaced.
      tokenizer: tokenizer to write beside the adapter.

    Returns:
      The directory, with `~` expanded, or the URL.
    """
    with outgoing.written(directory, overwrite, adapter_config.CONFIG_NAME) as target:
        _save(variables, target, base, initial, dtype, rslora, name, overwrite, tokenizer)
    return outgoing.at(directory)


def _save(
    variables: Mapping,
    target: Path,
    base: str | os.PathLike,
    initial: Mapping | None,
    dtype: DTypeLike,
    rslora: bool,
    name: str | None,
    overwrite: bool,
    tokenizer: TokenizerFiles | None,
) -> None:
    """Writes the adapters to a local directory; see `save_adapter`."""
    with in_step():
        kind = dtype_name(dtype)
        params = params_of(variables)
        standing = Base.at(base, params)
        adapters = _fitting(variables, standing, "the variables")
        started = {} if initial is None else _fitting(initial, standing, "`initial`")
        if jax.process_index() == 0:
            refuse_existing(target, overwrite, adapter_config.CONFIG_NAME)
    held = standing.held(params, started)
    sample = standing.smallest(adapters)
    weight = jax.tree.map(to_host, one_layer(params[sample.path], sample.layer))
    norms = {path: to_host(stacking.column_norms(params[path])) for path in standing.idle(adapters)}
    adapters, started = (jax.tree.map(to_host, each) for each in (adapters, started))
    with standing.stored, in_step():
        if jax.process_index() == 0:
            adapters = _since(started, adapters)
            standing.check(sample, weight, started)
            fingerprint = standing.fingerprint()
            standing.refuse_others(held, fingerprint)
            adapter = _Written.of(adapters, norms, standing, fingerprint)
            with new_directory(target, overwrite, adapter_config.CONFIG_NAME) as partial:
                adapter.write(partial, kind, rslora, _named(name or base))
                if tokenizer:
                    tokenizer.write(partial, whole=False)


def _fitting(variables: Mapping, base: Base, label: str) -> dict[str, Lora]:
    """Returns the adapters by path; raises one error listing all that do not fit the base."""
    adapters = lora.adapters(variables)
    if not adapters:
        raise CheckpointError(
            f"no adapters in {label}: pass the variables that jaxtune.add_lora returned, or write"
            " the weights with jaxtune.save_merged"
        )
    linear = {piece.path for parts in base.linears.values() for piece in parts}
    problems = [
        f"  {path}: a {adapter.a.shape} and b {adapter.b.shape}, but the base has "
        + (f"a weight of shape {base.shapes[path]}" if path in linear else "no such linear map")
        for path, adapter in adapters.items()
        if path not in linear or not adapter.stands_on(base.shapes[path])
    ]
    if len({adapter.magnitude is None for adapter in adapters.values()}) > 1:
        problems.append("  some have a magnitude (DoRA) and some do not: PEFT needs all or none")
    if problems:
        raise CheckpointError(
            names.listed(f"the adapters in {label} do not fit {base.directory}:", problems)
        )
    return adapters


def _since(started: Adapters, adapters: Adapters) -> Adapters:
    """Returns adapters for the published weights that are equivalent to the trained ones.

    The trained adapters belong to weights from which the product of the initial ones (`started`)
    was subtracted, so the negated initial ones are appended to them as further ranks. If `started`
    is empty, the weights are the published ones and `adapters` are returned unchanged.
    """
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
            names.listed(
                "`initial` must have the same adapters with the same scales; these differ:", unlike
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
    """Contents of an adapter's files."""

    modules: Modules
    targets: list[str] | str
    dropout: float
    metadata: Mapping[str, str]

    @classmethod
    def of(
        cls,
        adapters: Adapters,
        norms: Mapping[str, np.ndarray],
        base: Base,
        fingerprint: Fingerprint | None,
    ) -> "_Written":
        """Converts our adapters to those of the base's modules; for `norms`, see `joined`."""
        modules = {
            module: stacking.joined(pieces, adapters, norms)
            for module, pieces in base.linears.items()
            if any(piece.path in adapters for piece in pieces)
        }
        beside = [*base.others, *(base.linears.keys() - modules.keys())]
        # PEFT has one dropout rate for all modules.
        shares = [each.dropout for each in adapters.values() if each.dropout is not None]
        dropout = max((np.float32(share.max()) for share in shares), default=0.0)
        return cls(
            modules,
            adapter_config.targets(modules, beside),
            float(str(dropout)),  # 0.1, and not its float32 value 0.10000000149
            PYTORCH
            | stacking.noted_ranks(adapters, base.linears)
            | (fingerprint.note if fingerprint else {}),
        )

    def write(self, directory: Path, kind: str, rslora: bool, named: Mapping) -> None:
        """Writes the config and the weight file that PEFT reads."""
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
        plan = {
            name: (array.shape, array.dtype if kind == AUTO else jnp.dtype(kind))
            for name, array in arrays.items()
        }
        [file] = write_sharded(
            directory,
            plan,
            lambda name: cast(arrays[name], plan[name][1], name),
            sys.maxsize,
            self.metadata,
        )
        file.rename(directory / adapter_config.WEIGHTS_NAME)


def _named(base: str | os.PathLike) -> dict[str, str | None]:
    """Returns the entries of PEFT's config for the base: its name, and separately its revision."""
    text = os.fspath(base)
    repository = None if Path(text).exists() else REPO_ID.fullmatch(text)
    path, revision = (repository["repo"], repository["revision"]) if repository else (text, None)
    return {"base_model_name_or_path": path, "revision": revision}
