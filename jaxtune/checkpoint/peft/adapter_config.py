"""Reads and writes PEFT's adapter_config.json: the target modules and their ranks and scales."""

import functools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.adapters.lora import LARGEST_SCALE
from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.tree.patterns import PatternError, Patterns

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PLAIN = re.compile(r"[\w.-]+")  # a pattern without repetitions or alternatives
LAYER = re.compile(r"\.(?P<number>\d+)(?=\.)")
INITS = (True, False, "gaussian", "eva", "orthogonal")  # these leave the base unchanged

# Keys that may have any value. A key that is neither here nor in `EXPECTED` must be off (null,
# false, 0 or empty).
HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type"),
    *("peft_version", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
    *("ensure_weight_tying", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_map(is_value: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        value is None or (isinstance(value, dict) and all(map(is_value, value.values())))
    )


def _is_one_or_many(kind: type) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        many = value if isinstance(value, list) else [value]
        return value is None or all(type(each) is kind for each in many)

    return fits


NAMES = (_is_one_or_many(str), "expected a name, a list of names or null")
SWITCH = (lambda value: type(value) is bool, "expected true or false")
EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "peft_type": (lambda value: value == "LORA", "expected LORA, the only type that jaxtune reads"),
    "bias": (lambda value: value == "none", "expected 'none', an adapter without trained biases"),
    "init_lora_weights": (
        lambda value: value in INITS,
        "this initialisation changed the base weights, and the adapter fits only the changed ones."
        " Convert it to plain LoRA where it was trained:"
        " save_pretrained(…, path_initial_model_for_weight_conversion=…)",
    ),
    "r": (_is_whole, "expected a positive integer"),
    "lora_alpha": (_is_number, "expected a number"),
    "lora_dropout": (
        lambda value: _is_number(value) and 0 <= value < 1,
        "expected a number from 0 to less than 1",
    ),
    "rank_pattern": (_is_map(_is_whole), "expected an object whose values are positive integers"),
    "alpha_pattern": (_is_map(_is_number), "expected an object whose values are numbers"),
    "use_rslora": SWITCH,
    "use_dora": SWITCH,
    "target_modules": NAMES,
    "exclude_modules": NAMES,
    "layers_pattern": NAMES,
    "layers_to_transform": (
        _is_one_or_many(int),
        "expected an integer, a list of integers or null",
    ),
}


def described(
    ranks: Mapping[str, int], scales: Mapping[str, np.float32], *, rslora: bool, dora: bool
) -> dict[str, Any]:
    """Returns the settings for adapter_config.json, but for base, dropout and target modules.

    Args:
      ranks: rank of each module's adapter, by module name.
      scales: factor on each module's low-rank product, by module name.
      rslora: whether to express the scales as lora_alpha / √rank, and not as lora_alpha / rank.
      dora: whether the adapters have magnitudes.

    Returns:
      The settings. The most common rank and lora_alpha become `r` and `lora_alpha`, and the others
      go into `rank_pattern` and `alpha_pattern`.
    """
    alphas = {
        module: _alpha(scale, _divisor(ranks[module], rslora)) for module, scale in scales.items()
    }
    rank, alpha = (_most_common(each.values()) for each in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "init_lora_weights": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": _pattern(alphas, alpha),
        "use_rslora": rslora,
        "use_dora": dora,
    }


def targets(modules: Iterable[str], others: Iterable[str]) -> list[str] | str:
    """Returns `target_modules` that select exactly `modules`, and none of the `others`.

    A list of last names, such as `up_proj`, or a regular expression if these would also select
    some of the others.
    """
    modules = list(modules)
    suffixes = {last_name(module) for module in modules}
    if not suffixes & {last_name(other) for other in others}:
        return sorted(suffixes)
    after: dict[str, set[str]] = {}  # the names after the layer number, by the name before it
    for module in modules:
        before, *rest = re.split(r"\.\d+\.", module, maxsplit=1)
        after.setdefault(before, set()).update(rest)
    return "|".join(_alternatives(before, sorted(after[before])) for before in sorted(after))


def _alternatives(before: str, after: list[str]) -> str:
    numbered = rf"\.\d+\.({'|'.join(map(re.escape, after))})" if after else ""
    return re.escape(before) + numbered


def last_name(module: str) -> str:
    """Returns the last part of a module name: `up_proj` of `model.layers.0.mlp.up_proj`."""
    return module.rpartition(".")[2]


@dataclass(frozen=True)
class Settings:
    """Settings of an adapter_config.json that jaxtune supports."""

    raw: Mapping[str, Any]
    file: Path

    @classmethod
    def read(cls, directory: Path) -> "Settings":
        """Reads the config in an adapter's directory; raises if it needs what jaxtune lacks."""
        file = directory / CONFIG_NAME
        if file.exists() and not file.is_file():
            raise CheckpointError(f"{file} is not a regular file")
        try:
            raw = json.loads(file.read_text(encoding="utf-8-sig"))
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(_no_config(directory)) from None
        except OSError as problem:
            raise CheckpointError(f"{file} cannot be read: {problem.strerror}") from None
        except (ValueError, RecursionError) as problem:
            raise CheckpointError(f"{file} is not JSON: {problem}") from None
        if not isinstance(raw, dict):
            raise CheckpointError(f"{file}: expected an object, found {type(raw).__name__}")
        settings = cls(raw, file)
        settings._check()
        return settings

    @property
    def dora(self) -> bool:
        """Whether every module has a DoRA magnitude."""
        return bool(self.raw.get("use_dora"))

    @property
    def base(self) -> str:
        """Suffix for error messages that names the base, or "" if the config does not name it."""
        named = self.raw.get("base_model_name_or_path")
        return f" (its base: {named})" if named else ""

    @property
    def dropout(self) -> float:
        """Dropout rate on the inputs of the adapters in training."""
        return self.raw.get("lora_dropout", 0.0)

    def rank(self, module: str) -> int:
        """Returns the rank that a module's adapter must have."""
        return self._by_pattern("rank_pattern", module, self.raw.get("r", 8))

    def scale(self, module: str) -> np.float32:
        """Returns the factor on a module's low-rank product."""
        alpha = self._by_pattern("alpha_pattern", module, self.raw.get("lora_alpha", 8))
        scale = alpha / _divisor(self.rank(module), bool(self.raw.get("use_rslora")))
        if abs(scale) > LARGEST_SCALE:
            raise CheckpointError(
                f"{self.file}: lora_alpha (or alpha_pattern) is {alpha:g} for {module}, which"
                f" multiplies its adapter by {scale:g}: expected a factor of at most"
                f" {LARGEST_SCALE:g}"
            )
        return np.float32(scale)

    def targeted(self, module: str) -> bool:
        """Whether PEFT would put an adapter beside this module."""
        chosen, left_out = self.raw.get("target_modules"), self.raw.get("exclude_modules")
        if left_out and self._picks("exclude_modules", module):
            return False
        if not chosen or not self._picks("target_modules", module):
            return False
        return isinstance(chosen, str) or module in chosen or self._in_a_chosen_layer(module)

    def _check(self) -> None:
        for key, value in ({"peft_type": None} | self.raw).items():
            if key in EXPECTED:
                fits, why = EXPECTED[key]
                fine = fits(value)
            else:
                fine = not value or key in HARMLESS
                why = "expected null, because jaxtune does not support this setting"
            if not fine:
                raise CheckpointError(f"{self.file}: {key[:80]} is {_shown(value)}: {why}")

    def _by_pattern(self, key: str, module: str, otherwise: Any) -> Any:
        """Returns the value of the first pattern in `key` that matches the end of a module name."""
        for pattern, value in (self.raw.get(key) or {}).items():
            if PLAIN.fullmatch(pattern):
                fits = _ends_in(module, pattern)
            else:
                fits = self._matches(key, rf"(.*\.)?({pattern})$", module)
            if fits:
                return value
        return otherwise

    def _picks(self, key: str, module: str) -> bool:
        chosen = self.raw[key]
        if isinstance(chosen, str):
            return self._matches(key, chosen, module)
        return any(module == each or module.endswith(f".{each}") for each in chosen)

    def _in_a_chosen_layer(self, module: str) -> bool:
        layers, patterns = self.raw.get("layers_to_transform"), self.raw.get("layers_pattern")
        if layers is None or layers == []:
            return True
        patterns = [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]
        lead = r"(?:^|.*?\.)" if self.raw.get("layers_pattern") else r".*?\."
        for pattern in patterns:
            for number in LAYER.finditer(module):
                before = module[: number.start()]
                if self._matches("layers_pattern", f"{lead}{pattern}", before):
                    chosen = [layers] if isinstance(layers, int) else layers
                    return int(number["number"]) in chosen
        return False

    @cached_property
    def _patterns(self) -> Patterns:
        return Patterns()

    def _matches(self, key: str, pattern: str, text: str) -> bool:
        try:
            return self._patterns.fullmatch(pattern, text)
        except PatternError as problem:
            raise CheckpointError(f"{self.file}: {key}: {problem}") from None


def _ends_in(module: str, pattern: str) -> bool:
    """Whether a plain pattern matches the last parts of a name, where a dot is any character."""
    start = len(module) - len(pattern)
    whole_parts = start == 0 or (start > 0 and module[start - 1] == ".")
    return whole_parts and bool(_compiled(pattern).match(module, start))


@functools.lru_cache(4096)  # each module may have a pattern of its own
def _compiled(pattern: str) -> re.Pattern:
    return re.compile(pattern)


def _no_config(directory: Path) -> str:
    if (directory / "config.json").is_file():
        return (
            f"{directory} has a config.json but no {CONFIG_NAME}: it is a whole model, not an"
            " adapter; load it with jaxtune.load"
        )
    return (
        f"{directory} has no {CONFIG_NAME}: expected the directory of an adapter in PEFT's layout"
    )


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of many digits"
    return text if len(text) <= 80 else f"{text[:80]}…"


def _divisor(rank: int, rslora: bool) -> float:
    return math.sqrt(rank) if rslora else rank


def _alpha(scale: np.float32, divisor: float) -> int | float:
    """Returns the lora_alpha with the fewest digits that gives exactly this scale.

    Most likely it is the number that a user once typed.
    """
    exact = float(scale) * divisor
    candidates = (float(f"{exact:.{digits}g}") for digits in range(1, 18))
    alpha = next(each for each in candidates if np.float32(each / divisor) == scale)
    return int(alpha) if alpha.is_integer() else alpha


def _most_common(values: Iterable[Any]) -> Any:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _pattern(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """Returns the values that differ from `usual`, by last name, or full name if layers differ."""
    pattern = {}
    for name in sorted({last_name(module) for module in values}):
        group = {module: value for module, value in values.items() if last_name(module) == name}
        alike = len(set(group.values())) == 1
        entries = {name: next(iter(group.values()))} if alike else group
        pattern |= {key: value for key, value in entries.items() if value != usual}
    return pattern
