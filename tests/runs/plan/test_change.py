"""What to change so that a run fits: the search on made-up memory, and once on real programs."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from jax.sharding import AbstractMesh

from jaxtune.config import load as configs
from jaxtune.display.errors import UserError
from jaxtune.display.progress import Quiet
from jaxtune.runs.plan import change, report
from jaxtune.runs.plan.change import Fit, largest_batch, to_fit
from jaxtune.runs.plan.plan import changed, overrides

WEIGHTS = {None: 1600, "int8": 900, "nf4": 500, "nf4-double": 450, "int4": 500}
ONE = AbstractMesh((1, 1, 1), ("data", "fsdp", "tensor"))
KEPT = {"none": 300, "dots": 60, "full": 20, "offload": 12}  # of a row


@dataclass
class Fake:
    """A planner of runs whose peak is a formula of their config."""

    limit: int
    config: object
    peak: object
    mesh: AbstractMesh = ONE
    lines: int = 1000
    base: object = lambda config: 0
    tried: list = field(default_factory=list)

    @property
    def assembly(self):
        return SimpleNamespace(config=self.config, mesh=self.mesh)

    @property
    def rows(self):
        return SimpleNamespace(loader=SimpleNamespace(lines=range(self.lines)))

    @property
    def target(self):
        return SimpleNamespace(limit_bytes=self.limit)

    progress = Quiet()

    def resident(self, changes) -> int:
        return self.base(changed(self.config, changes))

    def plan(self, changes):
        config = changed(self.config, changes)
        peak = self.peak(config)
        self.tried.append(dict(changes))
        return SimpleNamespace(peak_bytes=peak, fits=peak <= self.limit)


def config(**changes):
    """A config of 16 rows, 1,200 bytes of optimiser, and recomputed activations."""
    values = {"steps": 4, "model": {"path": "x"}, "data": {"source": "x.jsonl"}}
    values["batch"] = {"rows": 16}
    for section, fields in changes.items():
        values[section] = {**values.get(section, {}), **fields}
    return configs.parse(values)


def base(config) -> int:
    whole = config.mesh.fsdp if config.mesh.fsdp > 1 else 1
    return WEIGHTS[config.model.quant] // whole


def memory(config) -> int:
    """The sum of weights, optimiser and activations, as of a true run."""
    optimiser = 300 if config.optim.name == "adamw8bit" else 1200
    at_once = config.batch.rows // config.batch.accumulate
    return base(config) + optimiser + at_once * KEPT[config.model.remat]


def fake(limit: int, peak=memory, **changes) -> Fake:
    own = {name: changes.pop(name) for name in ("mesh", "lines") if name in changes}
    made = config(mesh=changes.pop("axes", {}), **changes)
    return Fake(limit, made, peak, base=base, **own)


@pytest.mark.parametrize(
    "limit, changes, expected",
    [
        # 16 rows take 320: fewer at once suffice, and not more micro-batches than needed.
        (1600 + 1200 + 160, {}, {"batch.accumulate": 2}),
        (1600 + 1200 + 20, {}, {"batch.accumulate": 16}),
        # The optimiser's state alone suffices; the micro-batches tried before are taken back.
        (1600 + 300 + 320, {}, {"optim.name": "adamw8bit"}),
        (1600 + 300 + 40, {}, {"optim.name": "adamw8bit", "batch.accumulate": 8}),
        # Recomputation before quantisation, and no more of it than needed.
        (
            1600 + 300 + 60,
            dict(model={"remat": "none"}),
            {"optim.name": "adamw8bit", "model.remat": "dots", "batch.accumulate": 16},
        ),
        # The inputs of layers leave the device before the base is quantised.
        (1600 + 300 + 15, {},
         {"optim.name": "adamw8bit", "model.remat": "offload", "batch.accumulate": 16}),
        # Only quantisation helps, and of its kinds the one that is nearest to the weights.
        (900 + 1200 + 320, {}, {"optim.name": "adamw8bit"}),
        (900 + 300 + 320, {}, {"optim.name": "adamw8bit", "model.quant": "int8"}),
        (500 + 300 + 320, {}, {"optim.name": "adamw8bit", "model.quant": "nf4"}),
        (450 + 300 + 20, dict(model={"quant": "int8"}),
         {"optim.name": "adamw8bit", "model.quant": "nf4-double", "batch.accumulate": 16}),
        # No optimiser with moments: nothing to make smaller.
        (900 + 1200 + 320, dict(optim={"name": "sgd"}), {"model.quant": "int8"}),
    ],
)  # fmt: skip
def test_the_cheapest_changes_that_suffice(limit, changes, expected):
    planner = fake(limit, **changes)
    found, plan = to_fit(planner)
    assert found == expected
    assert plan.fits and plan.peak_bytes == memory(changed(planner.config, found))
    # Each of them is needed: without any one of them, the run does not fit.
    for name in found:
        fewer = {key: value for key, value in found.items() if key != name}
        assert memory(changed(planner.config, fewer)) > limit
    assert len(planner.tried) <= 20


def test_nothing_helps():
    planner = fake(100)
    assert to_fit(planner) is None
    # What a device holds throughout is known without compiling: none of these was compiled.
    assert planner.tried == []
    assert to_fit(fake(460)) is None


def test_weights_are_split_over_devices_rather_than_copied():
    mesh = AbstractMesh((4, 1, 1), ("data", "fsdp", "tensor"))
    planner = fake(400 + 1200 + 80, mesh=mesh, axes=dict(data=4, fsdp=1), optim={"name": "sgd"})
    found, _ = to_fit(planner)
    assert found == {"mesh.data": 1, "mesh.fsdp": 4, "batch.accumulate": 4}
    # A micro-batch has no fewer rows than the devices share evenly.
    parts = [tried.get("batch.accumulate", 1) for tried in planner.tried]
    assert max(parts) == 4


def test_changes_that_make_no_config_are_passed_over():
    """Such as a quantisation that the checkpoint, stored in 4 bits, does not take."""
    planner = fake(900 + 300 + 20)

    def refusing(config):
        if config.model.quant:
            raise UserError("it is quantised already")
        return memory(config)

    planner.peak = refusing
    assert to_fit(planner) is None
    assert not any("model.quant" in tried for tried in planner.tried)


PEAKS = {
    "in proportion": lambda rows: 1000 + 37 * rows,
    "more than in proportion": lambda rows: 500 + 3 * rows * rows,
    "less than in proportion": lambda rows: 500 + int(900 * rows**0.5),
    "in steps": lambda rows: 400 + 1000 * (-(-rows // 64)),
    "all at once": lambda rows: 100 if rows < 517 else 10**12,
    "the same": lambda rows: 900,
    "waste for few rows": lambda rows: 2000 + 30 * max(rows, 40),
}


@pytest.mark.parametrize("ways", [1, 4])
@pytest.mark.parametrize("limit", [50, 1000, 2000, 5000, 20_000])
@pytest.mark.parametrize("peak", PEAKS.values(), ids=PEAKS)
def test_the_largest_batch_is_that_of_trying_all(peak, limit, ways):
    mesh = AbstractMesh((1, ways, 1), ("data", "fsdp", "tensor"))
    planner = fake(limit, lambda config: peak(config.batch.rows), mesh=mesh)
    planner.base = lambda config: 0
    units = range(ways, 1000 + ways, ways)
    expected = max((rows for rows in units if peak(rows) <= limit), default=0)
    found = largest_batch(planner)
    assert found.rows == expected
    assert len(planner.tried) <= change.STRAIGHT + 12  # of up to 1,000
    if not expected:
        assert found == Fit(0, None, {}, {})
        return
    assert found.plan.peak_bytes == peak(expected)
    assert found.largest == {"batch.rows": expected, "batch.accumulate": 1}
    # The config's 16 rows, in the fewest micro-batches that fit.
    parts = [each for each in (1, 2, 4, 8, 16) if 16 // each <= expected and 16 // each % ways == 0]
    assert found.same == ({"batch.accumulate": parts[0]} if parts else {})


def test_a_batch_has_no_more_rows_than_the_run_has_lines():
    assert largest_batch(fake(10**9, lines=10)).rows == 10
    mesh = AbstractMesh((1, 4, 1), ("data", "fsdp", "tensor"))
    assert largest_batch(fake(10**9, mesh=mesh, lines=10)).rows == 12  # which four devices share


@pytest.mark.slow
def test_real_programs_that_do_not_fit(limited):
    """Two rows at once take less than four, and the changes are those of the config's fields."""
    planner = limited(10**12)
    whole, half = (planner.plan(each).peak_bytes for each in ({}, {"batch.accumulate": 2}))
    assert half < whole
    tight = limited((whole + half) // 2)
    assert tight.plan({}).fits is False
    found, plan = to_fit(tight)
    assert (found, plan.fits, plan.peak_bytes) == ({"batch.accumulate": 2}, True, half)
    message = report.refusal(tight.plan({}), (found, plan))
    assert message.startswith("this run does not fit: to train, a device would need ")
    assert message.endswith("  --config.batch.accumulate=2")


def test_a_refusal_without_a_way_out_says_so(planner):
    message = report.refusal(planner.plan({}), None)
    assert "reduce batch.max_length or trainable.rank, or use more devices" in message


def test_changes_are_those_of_the_command_line(planner):
    changes = {"batch.rows": 8, "mesh.fsdp": 1, "optim.name": "adamw8bit"}
    made = changed(planner.assembly.config, changes)
    assert (made.batch.rows, made.mesh.fsdp, made.optim.name) == tuple(changes.values())
    assert made.batch.max_length == planner.assembly.config.batch.max_length
    assert overrides(changes) == [
        "--config.batch.rows=8",
        "--config.mesh.fsdp=1",
        "--config.optim.name=adamw8bit",
    ]
