"""Two real processes over loopback, of which one sees damage that the other does not."""

import pytest

from jaxtune.workdir import agreement
from jaxtune.workdir.errors import WorkdirError
from tests.checkpoint.test_load import start
from tests.processes import free_port

# Each process has a copy of the checkpoints, as on disks of their own.
CODE = """
    import json, shutil, sys
    from pathlib import Path
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    rank, port = int(sys.argv[1]), sys.argv[2]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    from jaxtune import sharding
    from jaxtune.workdir import checkpoints
    from jaxtune.workdir.errors import WorkdirError

    mesh = sharding.make_mesh({"fsdp": 2})
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("fsdp"), PartitionSpec()))

    def state(number, width=3):
        make = lambda: {"split": jnp.full((4, width), number, jnp.float32), "whole": jnp.arange(5)}
        return jax.jit(make, out_shardings={"split": split, "whole": whole})()

    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0)
    )
    root = Path(sys.argv[3])
    shared = checkpoints.Checkpoints(root / "shared", keep=9)
    for step in range(1, 5):
        shared.save(step, state(step), {"rows": step})
    shared.wait()
    shared.close()

    own = root / str(rank) / "checkpoints"

    def opened(damage=lambda: None):
        jax.experimental.multihost_utils.sync_global_devices("copied")
        shutil.rmtree(own.parent, ignore_errors=True)
        shutil.copytree(root / "shared", own)
        if rank == 1:
            damage()
        return checkpoints.Checkpoints(own, keep=9)

    def truncated(*steps):
        for file in (f for step in steps for f in own.glob(f"{step}/state/**/*") if f.is_file()):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def mistaken(step):
        file = own / str(step) / "position/metadata"
        stored = json.loads(file.read_text())
        stored["content"]["checksums"]["whole"] ^= 1
        stored["checksum"] = checkpoints._checksum(stored["content"])
        file.write_text(json.dumps(stored))

    def fell_back(found, step):
        assert (found.step, found.position) == (step, {"rows": step}), found
        for shard in found.state["split"].addressable_shards:
            np.testing.assert_array_equal(shard.data, step)

    def refused(given, like, says):
        try:
            given.restore(like)
        except WorkdirError as error:
            assert says in str(error), error
            return
        raise AssertionError("nothing was raised")

    fell_back(opened().restore(like), 4)
    found = opened(lambda: (truncated(4), mistaken(3))).restore(like)
    fell_back(found, 2)
    first, second = found.damaged
    assert "checkpoints/4: " in first and "checkpoints/3: " in second
    assert "whole does not match its checksum" in second
    assert ("in process 1: " in first and "in process 1: " in second) == (rank == 0)
    # The first process moves what is damaged.
    assert sorted(each.name for each in own.iterdir()) == list("12" if rank == 0 else "1234")
    fell_back(opened(lambda: shutil.rmtree(own / "4")).restore(like), 3)
    gone = opened(lambda: shutil.rmtree(own))
    assert gone.begun and bool(gone.steps) == (rank == 0)
    refused(gone, like, "no checkpoint in")
    refused(opened(lambda: truncated(1, 2, 3, 4)), like, "can be read")
    other = state(0, width=3 + rank)
    refused(opened(), other, "the config needs float32[4, 4]")
    print("done", rank)
"""


@pytest.mark.slow
def test_processes_fall_back_and_raise_together(tmp_path):
    """One that waited alone would run into the timeout."""
    port = str(free_port())
    processes = [start(CODE, str(rank), port, str(tmp_path)) for rank in range(2)]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [out.split()[-2:] for out, _ in said] == [["done", "0"], ["done", "1"]], said


def test_alone_there_is_nobody_to_agree_with():
    def fails(error):
        raise error

    assert agreement.together(lambda: 7) == (7, "")
    assert agreement.together(lambda: fails(OSError("no  such\nfile"))) == (None, "no such file")
    with pytest.raises(WorkdirError, match="another config"):
        agreement.together(lambda: fails(WorkdirError("another config")))
    assert agreement.highest(3) == 3
    assert len(agreement.short(ValueError("x" * 400))) == 300
