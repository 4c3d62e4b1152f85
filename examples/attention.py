"""Looks at the attention weights of every layer and head, and at the outputs of every layer.

    python -m examples.attention

For each head it prints how spread its attention is, how far it looks back, how much of it the first
token gets, and which token the last position attends to most.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

import jaxtune
from examples.rows import BASE
from jaxtune import tree

PROMPTS = ("a calm sea at dawn\n", "rust and dry leaves\n", "a blend of mint, sage and carrot\n")


@dataclass(frozen=True)
class Attention:
    """What the heads of L layers attend to, and the sizes of the layers' outputs.

    Means are over the positions of all B prompts, without padding.
    """

    weights: np.ndarray  # float32[L, B, N, T, T], rows are queries
    outputs: np.ndarray  # float32[L, B, T, D]
    valid: np.ndarray  # bool[B, T], False at padding
    entropy: np.ndarray  # [L, N], in nats: the mean over queries
    distance: np.ndarray  # [L, N], mean number of positions looked back
    first: np.ndarray  # [L, N], mean share of the first token
    most: np.ndarray  # int64[L, B, N], position that the last query attends to most
    norms: np.ndarray  # [L], mean norm of the outputs
    turns: np.ndarray  # [L - 1], mean cosine of the outputs of a layer and of the one before


def read(model, variables, prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns attention weights, outputs of the layers, and which positions are valid."""
    length = max(map(len, prompts))
    tokens = np.array([ids + [0] * (length - len(ids)) for ids in prompts], np.int32)
    valid = np.arange(length) < np.array([[len(ids)] for ids in prompts])  # bool[B, T]
    _, found = model.apply(
        variables, jnp.asarray(tokens), valid=jnp.asarray(valid), mutable=["attention", "states"]
    )
    weights, outputs = (leaf_of(found[name]) for name in ("attention", "states"))
    return weights, outputs, valid


def leaf_of(collection) -> np.ndarray:
    """Returns the only array of a collection, which has the layers on its first axis."""
    (leaf,) = tree.flatten(collection).values()
    return np.asarray(leaf)


def measured(weights: np.ndarray, outputs: np.ndarray, valid: np.ndarray) -> Attention:
    """Returns the measures of some attention weights and outputs."""
    length = weights.shape[-1]
    queries = valid[None, :, None]  # as [L, B, N, T]

    def mean(values: np.ndarray) -> np.ndarray:  # [L, B, N, T] -> [L, N]
        return np.sum(values * queries, axis=(1, 3)) / valid.sum()

    surprise = -np.log(np.where(weights > 0, weights, 1))  # 0 where nothing is attended to
    back = np.arange(length)[:, None] - np.arange(length)  # [T, T], from query to key
    last = valid.sum(-1) - 1  # [B], index of the last query
    ends = np.stack([weights[:, row, :, at] for row, at in enumerate(last)], axis=1)
    kept = outputs[:, valid]  # [L, positions, D]
    norms = np.linalg.norm(kept, axis=-1)
    cosines = np.sum(kept[1:] * kept[:-1], axis=-1) / (norms[1:] * norms[:-1])
    return Attention(
        weights=weights,
        outputs=outputs,
        valid=valid,
        entropy=mean(np.sum(weights * surprise, axis=-1)),
        distance=mean(np.sum(weights * back, axis=-1)),
        first=mean(weights[..., 0]),
        most=ends.argmax(-1),
        norms=norms.mean(-1),
        turns=cosines.mean(-1),
    )


def main(prompts: tuple[str, ...] = PROMPTS) -> Attention:
    """Prints the measures of every layer and head, and returns them with the arrays."""
    model, variables = jaxtune.load(BASE, dtype="float32")
    tokenizer = model.origin.tokenizer
    ids = [[tokenizer.bos, *tokenizer.encode(prompt)] for prompt in prompts]
    found = measured(*read(model, variables, ids))
    print(f"the last position is that of {tokenizer.piece(ids[0][-1])!r} in {prompts[0]!r}")
    print("layer head  entropy  looks back  on first  its last position attends most to")
    for layer, head in np.ndindex(found.entropy.shape):
        at = found.most[layer, 0, head]
        print(
            f"{layer:5} {head:4} {found.entropy[layer, head]:8.3f} "
            f"{found.distance[layer, head]:11.2f} {found.first[layer, head]:9.1%}"
            f"  {tokenizer.piece(ids[0][at])!r} at {at}"
        )
    for layer, norm in enumerate(found.norms):
        turn = f", cosine with the layer before {found.turns[layer - 1]:.3f}" if layer else ""
        print(f"layer {layer}: mean norm of outputs {norm:.2f}{turn}")
    return found


if __name__ == "__main__":
    main()
