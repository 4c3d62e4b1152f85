"""`make demo`: a tiny bundled model learns to answer a theme with a palette of four colours.

It runs configs/palette_demo.py as the command line does, then lets the adapter that the run has
written answer themes that were held out.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxtune
from jaxtune import config as configs
from jaxtune import wiring
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.run import fit
from jaxtune.tasks import palette

CONFIG, WORKDIR = "configs/palette_demo.py", Path("runs/palette_demo")
THEMES, LENGTH = 4, 160


def main() -> None:
    """Train, unless that is done, and show what came of it."""
    config = configs.load(CONFIG)
    summary = fit(config, WORKDIR)
    model, base = jaxtune.load(config.model.path)
    tuned = jaxtune.load_adapter(model, base, summary["exported"])
    tokenizer = Tokenizer.open(config.model.path)
    _, held = wiring.sources(config)
    print("\nthemes that were held out: their palette, and what the model answers\n")
    for row in range(THEMES):
        record, place = held[row], held.place(row)
        prompt = palette.prefix(record, place)
        print(record["description"])
        for who, variables in (("untuned", base), ("tuned", tuned)):
            answer = continued(model, variables, tokenizer, prompt)
            print(f"  {who:<10}{shown(answer)}")
        print(f"  {'reference':<10}{shown(palette.suffix(record, place))}\n")
    print(f"the adapter, as PEFT reads it too: {summary['exported']}")


def continued(model, variables, tokenizer: Tokenizer, prompt: str) -> str:
    """What a model takes for the likeliest text after a prompt, at most a line of it."""
    ids = [tokenizer.bos, *tokenizer.encode(prompt)]
    begin, tokens = len(ids), np.zeros((1, LENGTH), np.int32)
    tokens[0, :begin] = ids
    for place in range(begin, LENGTH):
        found = int(_next(model, variables, tokens, place - 1))
        if found in tokenizer.stops:
            break
        tokens[0, place] = found
        ids.append(found)
    return tokenizer.decode(ids[begin:], continues=True).partition("\n")[0]


def shown(answer: str) -> str:
    """Colours as they look, on a terminal, and as they are written; or whatever else was said."""
    try:
        colours = json.loads(answer)
        blocks = [tuple(bytes.fromhex(colour.removeprefix("#"))) for colour in colours]
    except (ValueError, AttributeError, TypeError):
        return f"no palette: {answer.strip()[:60]!r}"
    if not sys.stdout.isatty():
        return " ".join(colours)
    swatches = [f"\033[48;2;{red};{green};{blue}m      \033[0m" for red, green, blue in blocks]
    return f"{''.join(swatches)}  {' '.join(colours)}"


@partial(jax.jit, static_argnums=0)
def _next(model, variables, tokens: jax.Array, place: int) -> jax.Array:
    """The likeliest token after that at a place, in a line whose rest is not looked at."""
    return jnp.argmax(model.apply(variables, tokens)[0, place])


if __name__ == "__main__":
    main()
