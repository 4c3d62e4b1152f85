"""What sampling draws from, beside transformers, and what it draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as live

import jaxtune
from jaxtune.decoding.generate import generate
from jaxtune.decoding.sampling import Sampling, filtered

LOGITS = np.random.default_rng(1).standard_normal((6, 50)).astype(np.float32) * 3
SEEN = np.random.default_rng(2).integers(0, 50, (6, 12))
WARPERS = {
    "temperature": live.TemperatureLogitsWarper,
    "top_k": live.TopKLogitsWarper,
    "top_p": live.TopPLogitsWarper,
    "min_p": live.MinPLogitsWarper,
}


@pytest.mark.parametrize(
    "given",
    [
        dict(temperature=0.2),
        dict(temperature=1.0, top_k=5),
        dict(temperature=0.7, top_p=0.8),
        dict(temperature=1.3, top_k=20, top_p=0.95, min_p=0.05),
        dict(temperature=1.0, top_p=0.01),
        dict(temperature=0.9, repetition=1.4),
    ],
    ids=str,
)
def test_distributions_are_those_of_transformers(given):
    scores = torch.from_numpy(LOGITS.copy())
    if "repetition" in given:
        penalty = live.RepetitionPenaltyLogitsProcessor(given["repetition"])
        scores = penalty(torch.from_numpy(SEEN), scores)
    for name, warper in WARPERS.items():
        if name in given:
            scores = warper(given[name])(None, scores)
    seen = np.zeros(LOGITS.shape, bool)
    np.put_along_axis(seen, SEEN, True, axis=1)
    found = filtered(jnp.asarray(LOGITS), Sampling.of(**given), jnp.asarray(seen))
    want = torch.softmax(scores, -1).numpy()
    np.testing.assert_allclose(jax.nn.softmax(found), want, atol=1e-5)


@pytest.mark.slow
def test_what_is_sampled_has_the_distribution_it_should(base):
    """Samples of one token over 512: chi-square beside its 99.9th percentile."""
    model, variables = jaxtune.load(base)
    prompt, count = [5, 6, 7], 10_000
    how = dict(temperature=0.2, top_p=0.9)
    drawn = generate(
        model, variables, [prompt], 1, stops=(), samples=count, batch=2048, seed=1, **how
    )
    logits = model.apply(variables, np.int32([prompt]))[:, -1]
    allowed = filtered(logits, Sampling.of(**how), None)
    want = np.asarray(jax.nn.softmax(allowed))[0] * count
    got = np.bincount(np.array(drawn)[:, 0], minlength=len(want))
    assert got[want == 0].sum() == 0 and 300 < (want > 0).sum() < 512
    likely = want >= 5  # as the test wants them
    statistic = ((got - want)[likely] ** 2 / want[likely]).sum()
    freedom = likely.sum() - 1
    # Wilson and Hilferty's approximation of the percentile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert freedom > 100 and statistic < limit
