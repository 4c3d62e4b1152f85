"""Which parts of a file are read, and how often, where several devices hold them."""

import pytest

from tests import devices
from tests.checkpoint.test_load import python


@pytest.mark.slow
def test_each_part_is_read_once_however_many_devices_hold_it(base):
    """Counted in bytes, on meshes that hold norms, and all or half of the matrices, repeatedly."""
    code = f"""
        import collections, jax, numpy as np, jaxtune
        from jaxtune import sharding, tree
        from jaxtune.checkpoint import placing
        alone = jaxtune.load({str(base)!r})[1]
        made, read = placing._converted, collections.Counter()

        def counted(stored, piece, dtype, index):
            for axis, start, block in made(stored, piece, dtype, index):
                read[piece.path, piece.layer] += block.size
                yield axis, start, block

        placing._converted = counted
        for dtype in ("float32", "bfloat16"):  # views of the file, and converted blocks
            for axes in (dict(data=8), dict(data=2, fsdp=4), dict(fsdp=2, tensor=-1)):
                read.clear()
                variables = jaxtune.load(
                    {str(base)!r}, dtype, mesh=sharding.make_mesh(dict(data=1) | axes)
                )[1]
                for path, leaf in tree.flatten(variables["params"]).items():
                    stacked = "layers" in path
                    parts = [count for (of, _), count in read.items() if of == path]
                    assert parts == [leaf.size // len(parts)] * len(parts), (axes, path, parts)
                    assert len(parts) == (3 if stacked else 1)
                    assert len(leaf.addressable_shards) == 8
                    for shard in leaf.addressable_shards:
                        expected = np.asarray(tree.flatten(alone["params"])[path][shard.index])
                        np.testing.assert_array_equal(shard.data, expected.astype(leaf.dtype))
        print("counted")
    """
    assert "counted" in python(code, **devices.environment(8))
