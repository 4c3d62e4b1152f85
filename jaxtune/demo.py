"""`make demo`: a checkpoint made on the spot, in the layout of a published one, loaded and asked.

The model is a Llama whose weights are set by hand, not trained: its embedding is the identity, its
layers add nothing, and its head holds the logarithms of how often one letter follows another in
`TEXT`. So what it says can be checked by eye, and by counting.
"""

import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxtune
from jaxtune import families
from jaxtune.models.decoder import Decoder

DIRECTORY = Path("runs/demo")
TEXT = (
    "the quick brown fox jumps over the lazy dog while the other dogs sleep in the shade of the "
    "old oak tree and think of the bones that they hid there then"
)
LETTERS = 128  # one token an ASCII character
CONFIG = dict(
    model_type="llama",
    vocab_size=LETTERS,
    hidden_size=LETTERS,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


def main() -> None:
    """Write the checkpoint unless it is there, load it as any other, and print what comes next."""
    if not (DIRECTORY / "config.json").exists():
        write_checkpoint(DIRECTORY)
    model, variables = jaxtune.load(DIRECTORY)
    leaves = jax.tree.leaves(variables)
    print(f"{DIRECTORY}: {sum(leaf.size for leaf in leaves):,} parameters, a letter a token\n")
    print(f"{'text':10}next letters, most likely first")
    for prompt in ("the", "q", "fo", "of th"):
        tokens = jnp.asarray([list(prompt.encode())])
        chances = jax.nn.softmax(model.apply(variables, tokens)[0, -1])
        best = [i for i in np.argsort(-np.asarray(chances))[:4] if chances[i] > 0.001]
        print(f"{prompt!r:10}" + "   ".join(f"{chr(i)!r} {chances[i]:.0%}" for i in best))


def write_checkpoint(directory: Path) -> Path:
    """The hand-made model, as a published checkpoint would lie there."""
    with tempfile.TemporaryDirectory() as origin:
        (Path(origin) / "config.json").write_text(json.dumps(CONFIG))
        _, _, config = families.read(Path(origin))
        model = Decoder(config, origin=origin)
        params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        params["embed"]["w"] = jnp.eye(LETTERS)
        for branch, out in (("attn", "o"), ("mlp", "down")):
            params["layers"][branch][out]["w"] *= 0
        # The final norm stretches a unit vector to the square root of its width.
        params["head"]["w"] = follower_logits(TEXT) / LETTERS**0.5
        return jaxtune.save_merged(model, {"params": params}, directory, dtype="float32")


def follower_logits(text: str) -> jax.Array:  # [LETTERS, LETTERS]
    """Logarithm of how often each character follows each, over `text`; -20 for never."""
    counts = np.zeros((LETTERS, LETTERS))
    for one, following in zip(text.encode(), text.encode()[1:], strict=False):
        counts[one, following] += 1
    chances = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return jnp.asarray(np.log(np.maximum(chances, np.exp(-20))))


if __name__ == "__main__":
    main()
