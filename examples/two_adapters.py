"""Trains two adapters over one nf4 base, which is held and dequantised once for both.

python -m examples.two_adapters
"""

import jax

import jaxtune
from examples.rows import BASE, batches

MEMBERS = ({"lr": 1e-3}, {"lr": 5e-3})


def main(steps: int = 30, directory: str = "runs/two-adapters") -> list[float]:
    """Trains, saves both adapters in PEFT's layout, and returns their last losses."""
    model, variables = jaxtune.load(BASE, dtype="float32", quant="nf4")
    optimizer = jaxtune.optimizer("adamw", clip_norm=1.0)
    states = []
    for seed, hyper in enumerate(MEMBERS):
        member = jaxtune.add_lora(variables, rank=8, alpha=16, key=jax.random.key(seed))
        states.append(jaxtune.TrainState.create(member, optimizer=optimizer, hyper=hyper))
    population = jaxtune.Population.of(states)
    for step, batch in zip(range(steps), batches(model.origin.tokenizer), strict=False):
        population, metrics = jaxtune.population_step(model, optimizer, population, batch)
        if step % 10 == 9:
            print(f"step {step + 1}: losses {metrics['loss']}")
    for number in range(len(MEMBERS)):
        variables = population.member(number).variables
        jaxtune.save_adapter(variables, f"{directory}/{number}", BASE, overwrite=True)
    return [float(loss) for loss in metrics["loss"]]


if __name__ == "__main__":
    main()
