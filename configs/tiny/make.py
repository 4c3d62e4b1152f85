"""Make the tiny base: a tokenizer and a model of Gemma 3's architecture, from random weights.

    python configs/tiny/make.py --out configs/tiny/base   # about half an hour on two cores

The text it learns from is generated (corpus.py); training is jaxtune's own, with all weights
trainable and packed rows. Nothing that is there already is overwritten without `--overwrite`.
"""

import argparse
import io
import itertools
import json
import re
import tempfile
import time
from pathlib import Path

import corpus
import jax
import jax.numpy as jnp
import numpy as np
from sentencepiece import SentencePieceTrainer

import jaxtune
from jaxtune import families
from jaxtune.data.examples import RowEncoder, Template
from jaxtune.data.loader import Loader
from jaxtune.data.sources import open_source
from jaxtune.data.survey import survey
from jaxtune.data.tokenizer import Tokenizer

BASE = Path(__file__).parent / "base"
DOCUMENTS = 14_000
LINES, LENGTH = 8, 256  # of a step
CONTEXT = 512
CODE = re.compile(r"#[0-9a-f]{6}")
SAMPLES = (
    "Coral is a",
    "In hex, navy is",
    "The colours of the winter harbour are",
    "Season, Club, Goals\n1987, Harwick Rovers, 12\n\nIn 1987,",
    "A large premium leather sofa by Halden costs about",
    "In winter the harbour is",
)

TOKENIZER = dict(
    model_type="bpe",
    vocab_size=2048,
    byte_fallback=True,
    split_digits=True,
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    normalization_rule_name="identity",
    character_coverage=1.0,
    **dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, control_symbols=["<mask>"]),
    **dict(pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>"),
    minloglevel=2,
)
CONFIG = dict(
    architectures=["Gemma3ForCausalLM"],
    model_type="gemma3_text",
    vocab_size=TOKENIZER["vocab_size"],
    hidden_size=256,
    intermediate_size=384,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    query_pre_attn_scalar=64,
    hidden_activation="gelu_pytorch_tanh",
    max_position_embeddings=CONTEXT,
    rms_norm_eps=1e-6,
    sliding_window=128,
    layer_types=["sliding_attention"] * 5 + ["full_attention"],
    rope_theta=1_000_000.0,
    rope_local_base_freq=10_000.0,
    attention_bias=False,
    attention_dropout=0.0,
    tie_word_embeddings=True,
    initializer_range=0.02,
    use_cache=True,
    **dict(pad_token_id=0, eos_token_id=1, bos_token_id=2, torch_dtype="bfloat16"),
)
GENERATION_CONFIG = dict(bos_token_id=2, eos_token_id=1, pad_token_id=0)
TOKENIZER_CONFIG = dict(
    tokenizer_class="GemmaTokenizer",
    **dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"),
    mask_token="<mask>",
    add_bos_token=True,
    add_eos_token=False,
    clean_up_tokenization_spaces=False,
    model_max_length=CONTEXT,
)


def main() -> None:
    """Read the arguments, make the base, and show what it says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=BASE, help="where to write it")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="to learn from")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate at its highest")
    parser.add_argument("--seed", type=int, default=0, help="of the text and the weights")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    chosen = parser.parse_args()
    if chosen.out.exists() and not chosen.overwrite:
        parser.error(f"{chosen.out} exists; give --overwrite, or another --out")
    with tempfile.TemporaryDirectory() as folder:
        start = write_start(Path(folder) / "start", chosen.seed)
        text = write_corpus(Path(folder) / "corpus.jsonl", chosen.documents, chosen.seed)
        model, variables = trained(start, text, chosen.lr, chosen.seed)
        jaxtune.save_merged(
            model, variables, chosen.out, dtype="bfloat16", overwrite=chosen.overwrite
        )
    for prompt in SAMPLES:
        print(repr(continued(chosen.out, prompt)))


def write_start(directory: Path, seed: int) -> Path:
    """A checkpoint with random weights, as a published one would lie there."""
    origin = directory.with_name("origin")
    origin.mkdir()
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", GENERATION_CONFIG),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
    ):
        (origin / name).write_text(json.dumps(content, indent=2) + "\n")
    (origin / "tokenizer.model").write_bytes(tokenizer(seed))
    model = families.read(origin)[2].clone(origin=str(origin))
    params = model.init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]
    # Embeddings of size 1 and branches that begin small beside them, or nothing is learnt of
    # what stands where for a long time.
    params["embed"]["w"] *= CONFIG["hidden_size"] ** -0.5 / jnp.std(params["embed"]["w"])
    for branch in ("attn", "mlp"):
        params["layers"][f"{branch}_post_norm"]["scale"] -= 0.7
    return jaxtune.save_merged(model, {"params": params}, directory, dtype="float32")


def tokenizer(seed: int, documents: int = 20_000) -> bytes:
    """A SentencePiece model of the corpus, learnt without hex codes, which it is to spell out."""
    texts = itertools.islice(corpus.documents(seed), documents)
    lines = (CODE.sub("#", line) for text in texts for line in text.split("\n") if line)
    made = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=lines, model_writer=made, **TOKENIZER)
    return made.getvalue()


def write_corpus(file: Path, documents: int, seed: int) -> Path:
    """So many documents as JSON lines, none of them what the tokenizer was made of."""
    with file.open("w") as lines:
        for text in itertools.islice(corpus.documents(seed + 1), documents):
            lines.write(json.dumps({"text": text}) + "\n")
    return file


def trained(start: Path, text: Path, lr: float, seed: int):
    """The model and its variables after one pass over the text."""
    model, variables = jaxtune.load(start)
    encoder = RowEncoder(
        Tokenizer.open(start), Template("", "{text}"), LENGTH, too_long="cut_suffix"
    )
    source = open_source(text)
    rows = survey(source, encoder)
    loader = Loader(source, encoder, rows, batch=LINES, packing=True, seed=seed)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    print(f"{count:,} parameters; {rows.tokens:,} tokens in {loader.steps:,} steps", flush=True)
    numbers = dict(lr=lr, weight_decay=0.1, b2=0.95, clip_norm=1.0, warmup_steps=100)
    optimizer = jaxtune.optimizer("adamw", "cosine", **numbers, total_steps=loader.steps)
    rules = [(".*", True)]
    state = jaxtune.TrainState.create(variables, trainable=rules, optimizer=optimizer)
    losses, began = [], time.monotonic()
    for step in loader:
        state, metrics = jaxtune.train_step(model, optimizer, state, step.batch)
        losses.append(metrics["loss"])
        if len(losses) % 50 == 0 or len(losses) == loader.steps:
            loss, seconds = np.mean(losses[-50:]), time.monotonic() - began
            print(f"step {len(losses):,}  loss {loss:.4f}  {seconds:.0f} s", flush=True)
    return model, state.variables


def continued(directory: Path, text: str, length: int = 40) -> str:
    """A text with the likeliest tokens after it, each from a forward pass over all before."""
    model, variables = jaxtune.load(directory, dtype="float32")
    tokens = Tokenizer.open(directory)
    ids = [tokens.bos, *tokens.encode(text)]
    forward = jax.jit(model.apply)
    row, end = jnp.zeros((1, len(ids) + length), jnp.int32), len(ids)
    row = row.at[0, :end].set(jnp.array(ids))
    while end < row.shape[1]:
        following = forward(variables, row)[0, end - 1].argmax()
        if following == tokens.eos:
            break
        row, end = row.at[0, end].set(following), end + 1
    return tokens.decode(row[0, :end].tolist())


if __name__ == "__main__":
    main()
