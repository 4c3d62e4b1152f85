"""Checkpoints: what is kept, what comes back, and what is taken for damaged."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxtune.workdir.checkpoints import Checkpoints, checksums
from jaxtune.workdir.errors import WorkdirError


@struct.dataclass
class State:
    """Of the kinds of leaf that a train state has."""

    step: jax.Array
    weights: dict
    rng: jax.Array


def state(seed: int = 0, width: int = 6) -> State:
    made = {
        "a": {"w": jax.random.normal(jax.random.key(seed), (3, width))},
        "codes": jnp.arange(5, dtype=jnp.uint8),
        "half": jnp.ones((2,), jnp.bfloat16) * 1.5,
        "none": None,
    }
    return State(jnp.asarray(seed, jnp.int32), made, jax.random.key(seed))


def like(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def bits(tree) -> list[bytes]:
    plain = tree.replace(rng=jax.random.key_data(tree.rng))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(plain)]


@pytest.fixture
def opened(tmp_path):
    """`opened()` is the checkpoints of one directory, anew each time."""
    made = []

    def opened(**options):
        made.append(Checkpoints(tmp_path / "checkpoints", **options))
        return made[-1]

    yield opened
    for each in made:
        each.close()


def test_what_is_saved_comes_back_to_the_bit(opened):
    saved = opened(keep=2)
    saved.save(7, state(3), {"rows": 12, "share": 0.1})
    saved.save(8, state(4), {"rows": 13, "share": 0.2})
    saved.wait()
    found = opened().restore(like(state()))
    assert (found.step, found.position) == (8, {"rows": 13, "share": 0.2})
    assert bits(found.state) == bits(state(4))
    assert found.state.rng.dtype == state().rng.dtype
    assert bits(opened().restore(like(state()), step=7).state) == bits(state(3))
    assert opened().position()["rows"] == 13


def test_the_newest_and_the_best_are_kept(opened):
    best = {1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2}
    saved = opened(keep=2)
    for step in best:
        saved.save(step, state(step), {}, best[step])
    saved.wait()
    assert saved.steps == [2, 5, 6]
    resumed = opened(keep=1)
    resumed.save(7, state(7), {}, 2)
    resumed.save(8, state(8), {}, 7)  # what it is becomes known after it was saved
    resumed.wait()
    assert resumed.steps == [7, 8]
    plain = opened(keep=1)
    plain.save(9, state(), {})
    plain.save(10, state(), {})
    plain.wait()
    assert plain.steps == [10]


def test_every_bit_counts():
    leaves = {"w": jnp.arange(12.0).reshape(3, 4), "n": jnp.arange(3, dtype=jnp.uint8)}
    before = checksums(leaves)
    swapped = checksums({**leaves, "w": leaves["w"][::-1]})
    assert swapped["w"] != before["w"] and swapped["n"] == before["n"]
    for bit in range(32):
        changed = (
            leaves["w"]
            .view(jnp.uint32)
            .at[1, 2]
            .set(leaves["w"].view(jnp.uint32)[1, 2] ^ np.uint32(1 << bit))
        )
        assert checksums({"w": changed.view(jnp.float32)})["w"] != before["w"]


@pytest.mark.parametrize(
    "path", ["state/manifest.ocdbt", "state/_METADATA", "position/metadata", "state"]
)
def test_what_is_missing_makes_way_for_the_one_before(path, opened, tmp_path):
    saved = opened(keep=2)
    for step in (1, 2):
        saved.save(step, state(step), {"step": step})
    saved.wait()
    target = tmp_path / "checkpoints/2" / path
    if target.is_dir():
        target.rename(tmp_path / "away")
    else:
        target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    assert opened().restore(like(state())).step == 1
    assert (tmp_path / "checkpoints/2").is_dir()  # a reader changes nothing
    found = opened(keep=2).restore(like(state()))
    assert found.step == 1 and bits(found.state) == bits(state(1))
    assert len(found.damaged) == 1 and "checkpoints/2" in found.damaged[0]
    assert (tmp_path / "damaged/2").is_dir() and opened().steps == [1]


def test_a_changed_position_is_damage(opened, tmp_path):
    saved = opened(keep=2)
    saved.save(1, state(1), {"rows": 12})
    saved.wait()
    file = tmp_path / "checkpoints/1/position/metadata"
    file.write_text(file.read_text().replace("12", "13"))
    with pytest.raises(
        WorkdirError, match=r"(?s)no checkpoint in .*does not match its checksum.*start from step 0"
    ):
        opened().restore(like(state()))


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, '{"item_handlers": 5}'])
def test_metadata_that_orbax_cannot_parse_is_named(content, opened, tmp_path):
    """Orbax then adds no checkpoint, which is told before any step; found by `make hostile`."""
    saved = opened(keep=2)
    saved.save(1, state(), {})
    saved.wait()
    file = tmp_path / "checkpoints/1/_CHECKPOINT_METADATA"
    file.write_text(content)
    assert opened().restore(like(state())).step == 1
    with pytest.raises(WorkdirError, match=r"A _CHECKPOINT_METADATA in it .* remove that file"):
        opened(keep=2).restore(like(state()))
    file.unlink()
    resumed = opened(keep=2)
    assert resumed.restore(like(state())).step == 1
    resumed.save(2, state(), {})


def test_a_checkpoint_of_another_model(opened):
    saved = opened(keep=2)
    saved.save(1, state(), {})
    saved.wait()
    with pytest.raises(
        WorkdirError, match=r"(?s)saved with another config:.*weights/a/w.*\[3, 6\].*\[3, 7\]"
    ):
        opened().restore(like(state(width=7)))
    assert opened().steps == [1]


def test_writes_that_fail_after_the_first_are_not_reported(opened, caplog):
    """Of several files that a full disk cannot take; found by `make hostile`."""
    opened(keep=1).save(1, state(), {})
    logging.getLogger("asyncio").error("_GatheringFuture exception was never retrieved")
    logging.getLogger("asyncio").error("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_a_full_disk_is_one_message(opened, capfd):
    """A limit on the size of files stands in for it; Orbax would print four tracebacks."""
    resource = pytest.importorskip("resource")  # not on Windows
    saved = opened(keep=2)
    saved.save(1, state(width=6), {})
    saved.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        saved.save(2, state(width=40_000), {})
        with pytest.raises(WorkdirError) as error:
            saved.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == (
        f"the checkpoint of step 2 could not be written to {saved.directory}: File too large; "
        "the last complete one is that of step 1"
    )
    saved.close()
    assert capfd.readouterr().err == ""
