"""Make the tiny PaliGemma: a tokenizer and a model that sees, from random weights.

    python configs/tiny_pictures/make.py --out /tmp/base   # half an hour on two busy cores

The pictures it learns from are drawn as it goes (scenes.py, shapes.py), each seen once; training is
jaxtune's own, with all weights trainable. It is written as big_vision publishes PaliGemma: one
.npz in float16 and the tokenizer. Nothing that is there is overwritten without `--overwrite`.
"""

import argparse
import io
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scenes
from sentencepiece import SentencePieceTrainer

import jaxtune
from jaxtune import families
from jaxtune.data.batches import Batch, collate
from jaxtune.data.examples import Example, RowEncoder, Template
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.models.paligemma import PaliGemma

BASE = Path(__file__).parent / "base"
WEIGHTS, TOKENIZER = "paligemma-tiny-pt-70.f16.npz", "paligemma_tokenizer.model"
STEPS, ROWS = 4000, 32
LENGTH, SCORED = 60, 32  # of a row in tokens: of its picture and text, and of what it learns
VOCABULARY = 480

PIECES = dict(
    model_type="bpe",
    vocab_size=VOCABULARY,
    byte_fallback=True,
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    normalization_rule_name="identity",
    character_coverage=1.0,
    user_defined_symbols=["\n"],
    **dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3),
    **dict(pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>"),
    minloglevel=2,
)
TEXT = dict(
    model_type="gemma",
    vocab_size=VOCABULARY,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=32,
)
TOWER = dict(
    model_type="siglip_vision_model",
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    patch_size=14,
    image_size=70,
    vision_use_head=False,
)
CONFIG = dict(
    architectures=["PaliGemmaForConditionalGeneration"],
    model_type="paligemma",
    image_token_index=VOCABULARY,  # the first that has no embedding, as in any such .npz
    **dict(text_config=TEXT, vision_config=TOWER),
    **dict(pad_token_id=0, eos_token_id=1, bos_token_id=2),
)


def main() -> None:
    """Read the arguments, make the base, and tell how often it is right."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=BASE, help="the folder")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {ROWS} pictures each")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate at its highest")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and the weights")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    chosen = parser.parse_args()
    files = [chosen.out / name for name in (WEIGHTS, TOKENIZER)]
    there = [str(file) for file in files if file.exists()]
    if there and not chosen.overwrite:
        parser.error(f"{', '.join(there)} exist; give --overwrite, or another --out")
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / TOKENIZER).write_bytes(tokenizer(chosen.seed))
    tokens = Tokenizer.open(chosen.out / TOKENIZER)
    with tempfile.TemporaryDirectory() as folder:
        model, variables = start(Path(folder), chosen.seed)
        variables = trained(model, variables, tokens, chosen)
        jaxtune.save_merged(
            model, variables, chosen.out / WEIGHTS, "float16", overwrite=chosen.overwrite
        )
    for name, share in right(chosen.out, tokens).items():
        print(f"{name}: {share:.0%} of its answers are right to the letter")


def tokenizer(seed: int, count: int = 20_000) -> bytes:
    """A SentencePiece model of what is asked and said."""
    rng = random.Random(seed)
    said = (scenes.saying(rng, scenes.scene(rng)) for _ in range(count))
    made = io.BytesIO()
    texts = itertools.chain.from_iterable(said)
    SentencePieceTrainer.train(sentence_iterator=texts, model_writer=made, **PIECES)
    return made.getvalue()


def start(folder: Path, seed: int) -> tuple[PaliGemma, dict]:
    """The model with random weights; what tells of it stands in a folder, as a published one's."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    model = families.read(folder)[2].clone(origin=str(folder))
    side = model.pictures.side
    inputs = (jnp.full((1, 1), VOCABULARY), jnp.zeros((1, side, side, 3)))
    params = model.init(jax.random.key(seed), *inputs)["params"]
    # Embeddings of size 1 and branches that begin small beside them, or nothing is learnt of
    # what stands where for a long time.
    embeddings, places = params["llm"]["embed"], params["img"]
    embeddings["w"] *= TEXT["hidden_size"] ** -0.5 / jnp.std(embeddings["w"])
    places["positions"] *= 0.3 / jnp.std(places["positions"])
    for layers in (params["llm"]["layers"], params["img"]["layers"]):
        layers["attn"]["o"]["w"] *= 0.3
        layers["mlp"]["down"]["w"] *= 0.3
    return model, {"params": params}


def trained(model: PaliGemma, variables: dict, tokens: Tokenizer, chosen) -> dict:
    """The variables after so many steps, each of pictures that were not there before."""
    numbers = dict(lr=chosen.lr, weight_decay=0.05, b2=0.98, clip_norm=1.0, warmup_steps=100)
    optimizer = jaxtune.optimizer("adamw", "cosine", **numbers, total_steps=chosen.steps)
    rules = [(".*", True)]
    state = jaxtune.TrainState.create(variables, trainable=rules, optimizer=optimizer)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    print(f"{count:,} parameters; {chosen.steps:,} steps of {ROWS} pictures", flush=True)
    losses, began = [], time.monotonic()
    for batch in itertools.islice(batches(model, tokens, chosen.seed), chosen.steps):
        state, metrics = jaxtune.train_step(model, optimizer, state, batch)
        losses.append(metrics["loss"])
        if len(losses) % 50 == 0 or len(losses) == chosen.steps:
            loss, seconds = np.mean(losses[-50:]), time.monotonic() - began
            print(f"step {len(losses):,}  loss {loss:.4f}  {seconds:.0f} s", flush=True)
    return state.variables


def batches(model: PaliGemma, tokens: Tokenizer, seed: int) -> Iterator[Batch]:
    """Pictures with something said of each, without end."""
    rng = random.Random(f"pictures {seed}")
    encoder = RowEncoder(tokens, Template("{prefix}\n", "{suffix}"), LENGTH, full_prefix=True)
    while True:
        shown = [scenes.scene(rng) for _ in range(ROWS)]
        said = (scenes.saying(rng, each) for each in shown)
        rows = (dict(zip(("prefix", "suffix"), each, strict=True)) for each in said)
        lines = [[with_picture(model, encoder(row, "row"))] for row in rows]
        batch = collate(lines, shape=(ROWS, LENGTH, SCORED), full_prefix=True)
        yield batch.replace(images=np.stack([seen(model, each) for each in shown])[:, None])


def with_picture(model: PaliGemma, example: Example) -> Example:
    """An example with its picture's tokens before it."""
    count = model.pictures.tokens
    none = np.zeros(count, bool)
    return replace(
        example,
        tokens=np.concatenate([np.full(count, model.pictures.token, np.int32), example.tokens]),
        scored=np.concatenate([none, example.scored]),
        causal=np.concatenate([none, example.causal]),
    )


def seen(model: PaliGemma, scene: scenes.Scene) -> np.ndarray:  # float32[S, S, 3]
    """A scene as the model sees it."""
    return scene.pixels(model.pictures.side).astype(np.float32) / 127.5 - 1


def right(folder: Path, tokens: Tokenizer, count: int = 100) -> dict[str, float]:
    """What share of its answers to pictures it has not seen is right, by what it is asked."""
    model, variables = jaxtune.load(folder / WEIGHTS)
    found = {}
    for about in scenes.SAYINGS:
        rng = random.Random(f"{about.__name__} afterwards")
        shown = [scenes.scene(rng) for _ in range(count)]
        said = [about(rng, each) for each in shown]
        prompts = [[tokens.bos, *tokens.encode(f"{prefix}\n")] for prefix, _ in said]
        images = [seen(model, each) for each in shown]
        stops = [tokens.eos]
        replies = jaxtune.generate(model, variables, prompts, SCORED, images=images, stops=stops)
        told = [tokens.decode([each for each in ids if each != tokens.eos]) for ids in replies]
        for (prefix, want), got in list(zip(said, told, strict=True))[:3]:
            print(f"{prefix!r}: {got!r}" + ("" if got == want else f", and not {want!r}"))
        pairs = zip(said, told, strict=True)
        found[about.__name__] = sum(want == got for (_, want), got in pairs) / count
    return found


if __name__ == "__main__":
    main()
