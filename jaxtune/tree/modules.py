"""Names that transformers and PEFT give to modules, as patterns over our slash paths."""

import difflib
import re

# Our weights by the last part of a module's name. Names that are the same in the decoder and in a
# vision tower mean the decoder's.
OURS = {
    "all-linear": "layers/(attn/[qkvo]|mlp/(gate|up|down))",
    "attention": "layers/attn/[qkvo]",
    "q_proj": "layers/attn/q",
    "k_proj": "layers/attn/k",
    "v_proj": "layers/attn/v",
    "o_proj": "layers/attn/o",
    "qkv_proj": "layers/attn/[qkv]",
    "gate_proj": "layers/mlp/gate",
    "up_proj": "layers/mlp/up",
    "down_proj": "layers/mlp/down",
    "gate_up_proj": "layers/mlp/(gate|up)",
    "q_norm": "layers/attn/q_norm",
    "k_norm": "layers/attn/k_norm",
    "input_layernorm": "layers/attn_norm",
    "pre_feedforward_layernorm": "layers/mlp_norm",
    "post_feedforward_layernorm": "layers/mlp_post_norm",
    "norm": "norm",
    "embed_tokens": "embed",
    "lm_head": "head",
    "out_proj": "img/layers/attn/o",
    "fc1": "img/layers/mlp/up",
    "fc2": "img/layers/mlp/down",
    "multi_modal_projector": "projector",
}
# What may come before the last part of a name, and which part of our path it stands for.
PARENTS = {"model": "", "language_model": "", "layers": "layers/", "self_attn": "attn/"}
PARENTS |= {"mlp": "mlp/", "vision_tower": "img/", "vision_model": "img/", "encoder": "img/"}
NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
WEIGHT = "w"  # the leaf that is a module's weight, without its bias and its adapter


def pattern(name: str, leaf: str = ".*") -> str:
    """Returns a pattern over slash paths for a module's name, and any other text unchanged.

    `q_proj` and `self_attn.q_proj` stand for the leaves of that module in all layers.

    Args:
      name: the name of a module, or a pattern.
      leaf: pattern for the rest of the path, such as `WEIGHT`; by default all leaves of the module.

    Returns:
      A pattern for `params/layers/attn/q/w`, and for the path without its first part.
    """
    *parents, last = name.split(".") if len(name) < 200 and NAME.fullmatch(name) else [""]
    path = OURS.get(last)
    if path is None or not all(PARENTS.get(each, "?") in path for each in parents):
        return name
    tower = "" if path.startswith("img/") else "(llm/)?"
    return rf"((params|lora)/)?{tower}{path}/{leaf}"


def nearest(name: str) -> str | None:
    """Returns the name of a module that is like `name`, or None if none is."""
    last = name[:100].rpartition(".")[2]
    return next(iter(difflib.get_close_matches(last, OURS, n=1)), None)
