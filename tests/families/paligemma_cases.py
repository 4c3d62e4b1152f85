"""What tests of PaliGemma share: which references there are, and our logits of their rows."""

import numpy as np

from tests import pictured

# As for text models: two float32 forward passes that add in different orders.
BOUND = 5e-5
NAMES = list(pictured.TEXTS)
BOTH = NAMES[:2]


def ours(made, given, variables=None):
    variables = made.variables if variables is None else variables
    found = made.apply(
        variables, given.tokens, given.images, valid=given.valid, causal=given.causal
    )
    return np.asarray(found)
