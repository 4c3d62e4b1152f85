"""Optimisers and schedules against torch, transformers and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from jaxtune.training.optim import DEFAULTS, SCHEDULES, optimizer

PARAMS = {
    "params": {"up": {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.linspace(0.5, 1, 4)}}
}


def gradients(step: int):
    return jax.tree.map(lambda leaf: jnp.sin(leaf * 7 + step) * (1 + step), PARAMS)


def ours(made, steps: int = 12):
    hyper = {name: jnp.asarray(value, jnp.float32) for name, value in made.hyper.items()}
    update = jax.jit(made.update)
    params, state = PARAMS, made.init(PARAMS)
    for step in range(steps):
        changes, state = update(gradients(step), state, params, hyper=hyper, step=jnp.asarray(step))
        params = optax.apply_updates(params, changes)
    return params["params"]["up"]


def torch_s(make, clip=None, steps: int = 12):
    w, b = (torch.nn.Parameter(torch.tensor(np.array(PARAMS["params"]["up"][k]))) for k in "wb")
    optim = make([{"params": [w]}, {"params": [b], "weight_decay": 0.0}])
    for step in range(steps):
        found = gradients(step)["params"]["up"]
        w.grad, b.grad = (torch.tensor(np.array(found[name])) for name in "wb")
        if clip:
            torch.nn.utils.clip_grad_norm_([w, b], clip)
        optim.step()
    return {"w": w.detach().numpy(), "b": b.detach().numpy()}


NUMBERS = dict(lr=1e-2, weight_decay=0.1, b2=0.95, epsilon=1e-6)


def torch_adamw(groups):
    return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-6)


@pytest.mark.parametrize(
    ("made", "make", "clip"),
    [
        (optimizer("adamw", **NUMBERS, clip_norm=1.5), torch_adamw, 1.5),
        (optimizer("adamw8bit", **NUMBERS, clip_norm=1.5), torch_adamw, 1.5),  # too small to pack
        (optimizer("sgd", lr=1e-2), lambda groups: torch.optim.SGD(groups, lr=1e-2), None),
        (
            optimizer("sgd", lr=1e-2, momentum=0.9),
            lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
            None,
        ),
    ],
    ids=["adamw", "adamw8bit", "sgd", "momentum"],
)
def test_steps_are_torch_s(made, make, clip):
    got, want = ours(made), torch_s(make, clip)
    for name in "wb":
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("lion", lambda: optax.lion(1e-2, b1=0.9, b2=0.999, weight_decay=0.0)),
        pytest.param(
            "adafactor",
            lambda: optax.adafactor(1e-2, multiply_by_parameter_scale=False, momentum=None),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_steps_are_optax_s(name, make):
    reference = make()
    params, state = PARAMS, reference.init(PARAMS)
    for step in range(12):
        changes, state = reference.update(gradients(step), state, params)
        params = optax.apply_updates(params, changes)
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6),
        ours(optimizer(name, lr=1e-2)),
        params["params"]["up"],
    )


TOTAL, WARM = 40, 7


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("constant", lambda o: transformers.get_constant_schedule_with_warmup(o, WARM)),
        ("linear", lambda o: transformers.get_linear_schedule_with_warmup(o, WARM, TOTAL)),
        ("cosine", lambda o: transformers.get_cosine_schedule_with_warmup(o, WARM, TOTAL)),
        (
            "wsd",
            lambda o: transformers.get_wsd_schedule(
                o, WARM, 10, num_training_steps=TOTAL, decay_type="linear"
            ),
        ),
    ],
)
def test_schedules_are_transformers(name, make):
    optim = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optim)
    hyper = DEFAULTS | {"warmup_steps": WARM, "total_steps": TOTAL, "decay_steps": 10}
    for step in range(TOTAL + 1):
        got = float(SCHEDULES[name](jnp.asarray(step), hyper))
        assert got == pytest.approx(schedule.get_last_lr()[0], abs=1e-6), step
        optim.step()
        schedule.step()


def test_rates_multiply_leaf_by_leaf():
    slow = ours(optimizer("sgd", lr=1e-2, rates=[(r".*/b", 0.0)]))
    np.testing.assert_array_equal(slow["b"], PARAMS["params"]["up"]["b"])
    np.testing.assert_array_equal(slow["w"], ours(optimizer("sgd", lr=1e-2))["w"])


def test_numbers_do_not_tell_optimizers_apart():
    """They are arrays in the state, so a step compiled for one serves the other."""
    assert optimizer(lr=1e-3) == optimizer(lr=1e-4)
    assert hash(optimizer(lr=1e-3)) == hash(optimizer(lr=1e-4))
    assert optimizer("adamw") != optimizer("lion")
    assert optimizer("adamw8bit", b1=0.8) == optimizer("adamw8bit") != optimizer("adamw")
    assert optimizer(rates=[("a", 2.0), (".*", 1.0)]) != optimizer()


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (("adam",), {}, "unknown optimizer 'adam': expected one of adamw, adamw8bit, sgd"),
        (("sgd", "step"), {}, "unknown schedule 'step': expected one of constant"),
        ((), {"learning_rate": 1}, "unknown hyperparameter 'learning_rate': expected one of lr"),
    ],
)
def test_what_is_not_known(arguments, options, says):
    with pytest.raises(ValueError, match=says):
        optimizer(*arguments, **options)
