"""Differences of predictions beside the plain formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxtune.export.distance import SAMPLE, distance

RNG = np.random.default_rng(0)


def expected(reference, other) -> float:
    """The mean KL divergence as the books write it, in float64."""
    p, q = (np.float64(each) for each in (reference, other))
    p, q = (each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in (p, q))
    return (np.exp(p) * (p - q)).sum(-1).mean()


# Float32 logits of size 10 are known to 5e-7; nearer distributions than that are not told apart.
@pytest.mark.parametrize("apart", [10.0, 1.0, 0.1, 1e-3])
def test_kl_is_the_formulas(apart):
    reference = np.float32(3 * RNG.standard_normal((2, 7, 501)))
    other = np.float32(reference + apart * RNG.standard_normal(reference.shape))
    found = distance(reference, other)
    assert found.kl == pytest.approx(expected(reference, other), rel=2e-3 if apart < 0.1 else 1e-5)
    by_torch = torch.nn.functional.kl_div(
        *(torch.from_numpy(np.float64(each)).log_softmax(-1) for each in (other, reference)),
        log_target=True,
        reduction="none",
    )
    assert expected(reference, other) == pytest.approx(by_torch.sum(-1).mean().item(), rel=1e-9)
    assert found.positions == 14


def test_the_other_figures():
    reference = np.float32(RNG.standard_normal((10, 33)))
    other = reference.copy()
    other[3] = other[3, ::-1]  # the likeliest is another one
    other[4] += 2  # no prediction changes
    found = distance(reference, other)
    assert found.agreement == pytest.approx(0.9)
    largest = max(2.0, np.abs(other - reference).max())
    assert found.logits == pytest.approx(largest / reference.std(), rel=1e-5)
    assert found.kl == pytest.approx(expected(reference, other), rel=1e-5)


def test_equal_predictions_are_not_apart():
    logits = jnp.asarray(RNG.standard_normal((1, 5, 64)), jnp.bfloat16)
    found = distance(logits, logits)
    assert (found.kl, found.logits, found.agreement) == (0, 0, 1)
    still = jnp.zeros((4, 8))
    assert distance(still, still).logits == 0
    assert distance(still, still + 1).logits == 1


def test_sure_predictions_of_different_tokens_stay_finite():
    reference = 200 * jax.nn.one_hot(jnp.asarray([[1]]), 8)
    other = 200 * jax.nn.one_hot(jnp.asarray([[2]]), 8)
    found = distance(reference, other)
    assert found.kl == pytest.approx(200, rel=1e-6)
    assert found.agreement == 0


def test_logits_of_other_tokens_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(1, 3, 8\) and \(1, 4, 8\) cannot be compared"):
        distance(jnp.zeros((1, 3, 8)), jnp.zeros((1, 4, 8)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(value):
    logits = jnp.zeros((1, 3, 8))
    for pair in [(logits.at[0, 1, 2].set(value), logits), (logits, logits.at[0, 0, 0].set(value))]:
        with pytest.raises(ValueError, match="logits with infinities or NaNs"):
            distance(*pair)


def test_the_sample_is_text_of_its_own():
    assert 500 < len(SAMPLE) < 2000 and SAMPLE.strip() == SAMPLE[:-1]
