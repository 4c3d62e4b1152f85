"""Small known programs, compiled for eight devices; prints the texts as JSON."""

import json

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtune.sharding import make_mesh

MESH = make_mesh({"outer": 2, "inner": 4})


def mapped(run, inside, outside, *shapes):
    """Returns the compiled text of a function mapped over the mesh's devices by hand."""
    mapped = jax.shard_map(run, mesh=MESH, in_specs=inside, out_specs=outside, check_vma=False)
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(mapped).lower(*given).compile().as_text()


def gather_in_scan(w):  # 5 times 256 × 128 of four devices
    def layer(total, part):
        return total + jax.lax.all_gather(part, "inner", tiled=True).sum(), None

    return jax.lax.scan(layer, jnp.zeros(()), w)[0]


def nested(w):  # 3 × 7 times a permute of 32 × 16
    shift = [(i, (i + 1) % 4) for i in range(4)]

    def inner(x, _):
        return jnp.sin(jax.lax.ppermute(x, "inner", shift)), None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, length=7)[0] * 1.5, None

    return jax.lax.scan(outer, w, None, length=3)[0]


def unknown(w):  # until a value that only a run tells
    def go(state):
        return jax.lax.psum(state * 0.5, "inner")

    return jax.lax.while_loop(lambda state: state.sum() > 1.0, go, w)


def branches(w):
    # A device takes one of these.
    return jax.lax.cond(
        w[0, 0] > 0,
        lambda: jax.lax.psum(w, "inner"),
        lambda: jax.lax.psum(w[:2], "inner").sum() + w,
    )


print(
    json.dumps(
        {
            "gather_in_scan": mapped(gather_in_scan, P(None, "inner"), P(), (5, 256, 128)),
            "nested": mapped(nested, P("inner"), P("inner"), (128, 16)),
            "psum": mapped(lambda w: jax.lax.psum(w, ("outer", "inner")), P(), P(), (64, 32)),
            "scatter": mapped(
                lambda w: jax.lax.psum_scatter(w, "outer", tiled=True), P(), P("outer"), (64, 32)
            ),
            "transposed": mapped(
                lambda w: jax.lax.all_to_all(w, "inner", 1, 0, tiled=True),
                P("inner"),
                P(None, "inner"),
                (128, 16),
            ),
            "unknown": mapped(unknown, P(), P(), (8, 8)),
            "branches": mapped(branches, P(), P(), (16, 8)),
            "by_constraint": jax.jit(lambda w: jnp.sin(w), out_shardings=NamedSharding(MESH, P()))
            .lower(
                jax.ShapeDtypeStruct(
                    (64, 8), jnp.bfloat16, sharding=NamedSharding(MESH, P("inner"))
                )
            )
            .compile()
            .as_text(),
        }
    )
)
