"""Typed config fields with limits and a meaning, and the validation of values for them.

A `Schema` holds the fields of nested dataclasses by dotted key. It builds these dataclasses from
settings, which are Python values or text from the command line, or reports all errors in them.
"""

import dataclasses
import difflib
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from jaxtune.config.values import Misfit, conform, expected, fit, parse_text, within
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import MOST, cut, one_line, shown

# Condition for a field to be read: the name of another field of its section, and the values of that
# field for which it is read.
When = tuple[str, tuple[Any, ...]]

# What a check of several fields yields: the conflicting keys, and how to resolve the conflict.
Conflicts = Iterator[tuple[tuple[str, ...], str]]


MOST_PROBLEMS = 30  # listed in one message


class ConfigError(UserError):
    """An invalid config; the message lists every problem found."""


def about(default: Any, meaning: str, **more: Any) -> Any:
    """Returns a dataclass field of the schema with a default and a one-line meaning.

    `more` may hold `least` (≥), `above` (>), `below` (<) and `most` (≤), the limits of its numbers,
    and `usual`, values in common use, as text; `share=True` if a float is a share below 1;
    `needed=True` if it must not be empty; `when`, the condition for it to be read; and `also`, its
    names in other trainers, separated by spaces, by which an error about an unknown key suggests
    it.
    """
    return field(default=default, metadata={"meaning": meaning, **more})


# Settings: values by dotted key, assembled into dataclasses.


@dataclass(frozen=True)
class Setting:
    """A value for the field with a dotted key."""

    key: str
    value: Any
    origin: str  # its source, as named in errors
    typed: bool = False  # on the command line: the value is text, or None if it was left out


def override(text: str) -> Setting:
    """Parses a command-line override: `--config.section.field=value`."""
    key, equals, value = text.removeprefix("--config.").partition("=")
    return Setting(key or text, value if equals else None, "command line", typed=True)


def at(config: Any, key: str) -> Any:
    """Returns the value of a dotted key."""
    return reduce(getattr, key.split("."), config)


class Schema:
    """The fields of a dataclass by dotted key, and its sections, which are nested dataclasses."""

    def __init__(self, root: type):
        self.root = root
        self.sections = dict(_sections(root))
        self.fields = {
            f"{section}.{each.name}".lstrip("."): each
            for section, kind in {"": root, **self.sections}.items()
            for each in dataclasses.fields(kind)
            if each.metadata
        }

    def settings(
        self, values: Mapping[str, Any], origin: str, parent: str = ""
    ) -> Iterator[Setting]:
        """Yields the settings of nested dictionaries, with `parent` as prefix of their keys."""
        for name, value in values.items():
            key = f"{parent}{name}"
            if key in self.sections and isinstance(value, Mapping):
                yield from self.settings(value, origin, f"{key}.")
            else:
                yield Setting(key, value, origin)

    def assembled(
        self, settings: Iterable[Setting], checks: Iterable[Callable[[Any], Conflicts]] = ()
    ) -> Any:
        """Builds the dataclass from settings and defaults; the last setting of a key counts.

        `checks` yield conflicts between fields that are each valid. Raises ConfigError.
        """
        settings = {setting.key: setting for setting in settings}
        values, wrong = {}, {}
        for key, setting in settings.items():
            try:
                values[key] = self.value(setting)
            except Misfit as misfit:
                wrong[key] = str(misfit)
                if len(wrong) > MOST_PROBLEMS:
                    break
        config = _built(self.root, values)
        problems = [((key,), message) for key, message in wrong.items()]
        # An invalid field has its default in `config`, so conflicts that involve it are skipped.
        for check in (self._missing, self._idle, *checks):
            problems += [each for each in check(config) if not wrong.keys() & set(each[0])]
        if problems:
            raise ConfigError(self._listing(problems, settings))
        return config

    def given(self, config: Any, *keys: str) -> tuple[str, ...]:
        """Returns those of the given keys whose values differ from their defaults."""
        return tuple(key for key in keys if at(config, key) != self.fields[key].default)

    def difference(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
        """Returns one line, `key: old -> new`, per field that differs between nested dictionaries.

        Either may come from another version: a field that it lacks counts as having its default.
        """
        before, after = (
            {each.key: json.dumps(each.value, ensure_ascii=False) for each in settings}
            for settings in (self.settings(old, "old"), self.settings(new, "new"))
        )
        lost = "(no such field)"
        default = {key: json.dumps(known.default) for key, known in self.fields.items()}
        return [
            f"{key}: {before.get(key, lost)} -> {after.get(key, lost)}"
            for key in before | after
            if before.get(key, default.get(key)) != after.get(key, default.get(key))
        ]

    def describe(self, name: str) -> str:
        """Returns all fields with default, type and meaning, as text 100 columns wide."""
        paragraphs = []
        for section, kind in {name: self.root, **self.sections}.items():
            keys = [key for key in self.fields if (key.rpartition(".")[0] or name) == section]
            title = f"{section}: {kind.__doc__[0].lower()}{kind.__doc__[1:].rstrip('.')}"
            lines = (_described(key, self.fields[key]) for key in keys)
            paragraphs.append("\n".join([title, *lines]))
        return "\n\n".join(paragraphs)

    def value(self, setting: Setting) -> Any:
        """Converts a setting's value to its field's type; raises Misfit with the full message."""
        key, value = setting.key, setting.value
        if key in self.sections:
            inner = next(each for each in self.fields if each.startswith(f"{key}."))
            raise Misfit(
                f"found {shown(value)}, but this is a section; set its fields, such as {inner}"
            )
        if key not in self.fields:
            raise Misfit(f"no such field; did you mean {self.nearest(key)}?")
        if setting.typed and value is None:
            raise Misfit(f"found no value, expected --config.{key}=VALUE")
        known = self.fields[key]
        try:
            fitted = fit(value, known.type, parse_text if setting.typed else conform)
            if not within(fitted, known.metadata):
                raise Misfit
        except Misfit as misfit:
            reason = f" ({misfit})" if str(misfit) else ""
            raise Misfit(f"found {shown(value)}{reason}, expected {expected(known)}") from None
        return fitted

    def nearest(self, key: str) -> str:
        """Returns the field or section that an unknown key was probably meant to be."""
        key = key[:MOST]  # comparing takes time that grows with the square of the length
        # The last part is compared for keys in a wrong section, the whole for `section_field`.
        forms = (key.split(".")[-1], key.replace(".", "_"))

        def score(known: str) -> float:
            names = self._names(known)
            exact = 2 * any(form in names[1:] for form in forms)  # another trainer's name for it
            near = max(_alike(form, name) for form in forms for name in names)
            return exact + _alike(key, known) + near

        return max(self.fields if "." in key else (*self.fields, *self.sections), key=score)

    def called(self, name: str) -> str | None:
        """Returns the field with this name, with or without its section, here or elsewhere."""
        forms = (name, name.replace("-", "_"))
        known = [key for key in self.fields if {key, *self._names(key)} & set(forms)]
        return max(known, key=lambda key: (key in forms, _alike(key, name)), default=None)

    def _names(self, key: str) -> list[str]:
        """Returns a field's own name, and its names in other trainers."""
        also = self.fields[key].metadata.get("also", "") if key in self.fields else ""
        return [key.split(".")[-1], *also.split()]

    def counts(self, config: Any, key: str) -> bool:
        """Returns whether a field is read at all, given its `when` condition."""
        name, values = self.fields[key].metadata.get("when", (None, ()))
        return name is None or at(config, _beside(key, name)) in values

    def _missing(self, config: Any) -> Conflicts:
        for key, known in self.fields.items():
            if "needed" in known.metadata and not at(config, key) and self.counts(config, key):
                yield (key,), f"is required, but empty: {known.metadata['meaning']}"

    def _idle(self, config: Any) -> Conflicts:
        for key in self.given(config, *self.fields):
            if not self.counts(config, key):
                other, values = self.fields[key].metadata["when"]
                name, wanted = key.split(".")[-1], " or ".join(map(repr, values))
                yield (
                    (key, _beside(key, other)),
                    f"{name} is used only when {other} is {wanted}, but {other} is "
                    f"{at(config, _beside(key, other))!r}; remove {name} or change {other}",
                )

    def _listing(self, problems: Sequence[tuple[Sequence[str], str]], settings: Mapping) -> str:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        if len(problems) > MOST_PROBLEMS:
            count = f"more than {MOST_PROBLEMS} problems"
        lines = [f"the config has {count}:"]
        for keys, message in problems[:MOST_PROBLEMS]:
            origins = (settings[key].origin if key in settings else "default" for key in keys)
            named = (
                f"{cut(one_line(key))} ({origin})"
                for key, origin in zip(keys, origins, strict=True)
            )
            lines.append(f"{', '.join(named)}: {message}{self._way_out(keys, settings)}")
        return "\n  ".join(lines)

    def _way_out(self, keys: Sequence[str], settings: Mapping[str, Setting]) -> str:
        """Returns the override that ends a conflict of the command line with a file, if None does.

        For example, a file may set `epochs`, and the command line `steps`.
        """
        given = [settings[key] for key in keys if key in settings and key in self.fields]
        written = [each.key for each in given if not each.typed]
        if len(written) != 1 or len(given) < 2 or self.fields[written[0]].default is not None:
            return ""
        return f"; here, add --config.{written[0]}=None"


def _sections(kind: type, parent: str = "") -> Iterator[tuple[str, type]]:
    """Yields the sections within a dataclass, by dotted key, each before those within it."""
    for each in dataclasses.fields(kind):
        if not each.metadata:
            yield f"{parent}{each.name}", each.type
            yield from _sections(each.type, f"{parent}{each.name}.")


def _built(kind: type, values: Mapping[str, Any], parent: str = "") -> Any:
    arguments = {
        each.name: _built(each.type, values, f"{parent}{each.name}.")
        if dataclasses.is_dataclass(each.type)
        else values.get(f"{parent}{each.name}", each.default)
        for each in dataclasses.fields(kind)
    }
    return kind(**arguments)


def _beside(key: str, name: str) -> str:
    return f"{key.rpartition('.')[0]}.{name}"


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()


def _described(key: str, known: dataclasses.Field) -> str:
    default = (
        repr(known.default) if known.default or "needed" not in known.metadata else "(required)"
    )
    kind = expected(known)
    if "when" in known.metadata:
        name, values = known.metadata["when"]
        kind += f"; only with {name} {'/'.join(map(str, values))}"
    meaning = textwrap.indent(textwrap.fill(known.metadata["meaning"], 92), " " * 6)
    first = f"  {f'{key} = {default}':<38}"
    kind = textwrap.fill(kind, 100, initial_indent=first, subsequent_indent=" " * 40)
    return f"{kind}\n{meaning}"
