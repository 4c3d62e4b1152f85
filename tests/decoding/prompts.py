"""The model, the stops and the ragged prompts that several tests of decoding share."""

import numpy as np

STOPS = tuple(range(2, 10))  # so many that random models meet them at different times
NAME = "gemma3-linear-mqa"  # windows of six tokens


def prompts(made, count: int = 16, longest: int = 15) -> list[list[int]]:
    """Ragged ones, longer than the windows and shorter."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, longest + 1, count)
    return [random.integers(10, made.model.config.vocabulary, n).tolist() for n in lengths]
