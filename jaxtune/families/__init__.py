"""Model families, one module each, selected by the `model_type` in `config.json`."""

import difflib
from pathlib import Path

from jaxtune.display.escapes import shown
from jaxtune.families import gemma, llama, mistral, paligemma, phi, qwen
from jaxtune.families.huggingface import Family
from jaxtune.families.ranges import ConfigJson, FamilyError
from jaxtune.files import UnreadableError, read_json
from jaxtune.models.paligemma import Model

SUPPORTED: dict[str, Family] = {
    family.model_type: family
    for module in (gemma, llama, mistral, phi, qwen, paligemma)
    for family in module.FAMILIES
}


def find(config: ConfigJson, where: str = "config.json") -> Family:
    """Returns the family of a parsed `config.json`; errors name the file as `where`."""
    name = config.get("model_type")
    # Later releases may hold another text model under the same model_type, as PaliGemma 2 does.
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, dict) else None
    if isinstance(name, str) and isinstance(inner, str) and f"{name}+{inner}" in SUPPORTED:
        return SUPPORTED[f"{name}+{inner}"]
    if isinstance(name, str) and name in SUPPORTED:
        return SUPPORTED[name]
    near = difflib.get_close_matches(shown(name).strip("'"), SUPPORTED, n=1)
    supported = "\n".join(f"  {each.model_type:12} {each.title}" for each in SUPPORTED.values())
    raise FamilyError(
        f"{where}: model_type {shown(name)} is not supported"
        + (f" (nearest: {near[0]!r})" if near else "")
        + f"; supported model types:\n{supported}"
    )


def read_config(directory: Path) -> tuple[ConfigJson, Family, Model]:
    """Returns a checkpoint's parsed `config.json`, its family, and the model it describes."""
    file = directory / "config.json"
    try:
        config = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        raise FamilyError(
            f"{directory} has no config.json: expected a checkpoint directory as save_pretrained "
            "writes it, with config.json and *.safetensors"
        ) from None
    except UnreadableError as problem:
        raise FamilyError(str(problem)) from None
    if not isinstance(config, dict):
        raise FamilyError(f"{file}: expected a JSON object, found {type(config).__name__}")
    family = find(config, str(file))
    try:
        return config, family, family.model(config)
    except FamilyError as problem:
        raise FamilyError(f"{file}: {problem}") from None
    except KeyError as missing:
        raise FamilyError(f"{file}: {missing} is missing") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as problem:
        raise FamilyError(f"{file}: invalid value ({problem})") from None
