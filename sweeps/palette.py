"""Learning rate and rank of the palette demo, drawn by TPE; hopeless trials are pruned."""

from jaxtune.runs.sweep.space import log


def get_sweep():
    return dict(
        trials=12,
        sampler="tpe",
        pruner="median",
        metric="loss",
        space={
            "optim.lr": log(1e-4, 1e-2),
            "trainable.rank": [4, 8, 16],
            "seed": [0, 1],
        },
    )
