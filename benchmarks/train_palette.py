"""What one LoRA step of the palette job takes, in time and memory, beside TRL with PEFT.

    pip install trl
    python benchmarks/train_palette.py [--rounds 7] [--directory DIR]

The model has Gemma 3 270M's true shape and random weights, written to DIR (by default a temporary
directory, 0.5 GB). A step is 16 rows of a prompt and a palette, about 105 tokens a row of which
about 42 are scored: float32, LoRA r=16 beside all seven linear maps, dropout 0.05, AdamW, the norm
clipped. Each trainer lives in a process of its own and the processes take turns, a step each, on
the same rows; about 12 GB of memory hold them all. The peer runs with 16 rows at once and with one
row accumulated 16 times, neither with gradient checkpointing, which would only slow it down. Let
nothing else run: a trainer that has to wait for a core loses more than its share of the time.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GEMMA_3_270M = dict(
    model_type="gemma3_text",
    architectures=["Gemma3ForCausalLM"],
    vocab_size=262_144,
    hidden_size=640,
    intermediate_size=2048,
    num_hidden_layers=18,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    query_pre_attn_scalar=256,
    sliding_window=512,
    max_position_embeddings=32_768,
    layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3,
    rope_theta=1_000_000.0,
    rope_local_base_freq=10_000.0,
    tie_word_embeddings=True,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
    torch_dtype="bfloat16",
)
ROWS, LENGTH, SCORED = 16, 120, 48  # of a step; tokens and scored tokens that a row has room for
PARTS, REMAT = 4, "dots"  # of our step: micro-batches, and what is kept of each (see Decoder)
RANK, ALPHA, DROPOUT = 16, 32, 0.05
OPTIMIZER = dict(lr=5e-5, weight_decay=0.01, clip_norm=1.0)
TRAINERS = {"jaxtune": {}, "TRL, 1 x 16": {"batch": 1}, "TRL, 16 x 1": {"batch": 16}}
FASTER, MEMORY = 2.0, 2.5e9  # what is claimed: times the peer's tokens a second, and bytes
SAME = 1e-4  # relative: losses of the first step, before any weight differs
MARK = "measured "  # before the lines that the parent process reads


def main() -> None:
    """Let the trainers take turns and print a table."""
    options = parse()
    if options.child:
        child(options)
        return
    if importlib.util.find_spec("trl") is None:
        print("TRL is the trainer to compare with, and is not installed: pip install trl")
        sys.exit(2)
    with tempfile.TemporaryDirectory() as scratch:
        options.directory = options.directory or Path(scratch) / "gemma-3-270m"
        subprocess.run(command("checkpoint", options), check=True)
        busy = os.getloadavg()[0]
        report(measure(options), options.rounds, busy)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def command(name: str, options: argparse.Namespace) -> list[str]:
    """The command of a child process."""
    line = [sys.executable, __file__, "--child", name, "--directory", str(options.directory)]
    return [*line, "--rounds", str(options.rounds)]


def measure(options: argparse.Namespace) -> dict[str, dict]:
    """Every trainer's losses and seconds, step by step in turn, and its peak memory."""
    running = {name: start(name, options) for name in TRAINERS}
    found = {name: dict(steps=[]) for name in TRAINERS}
    for _ in range(options.rounds + 1):  # the first step compiles, and warms up
        for name, process in running.items():
            found[name]["steps"].append(taken(process))
    for name, process in running.items():
        process.stdin.close()
        process.stdout.close()
        _, process.returncode, used = os.wait4(process.pid, 0)
        found[name]["peak"] = used.ru_maxrss * 1024
    return found


def start(name: str, options: argparse.Namespace) -> subprocess.Popen:
    """A trainer's process, ready for its first step."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command(name, options), env=environment, text=True, **pipes)
    told(process)
    return process


def taken(process: subprocess.Popen) -> dict:
    """One step of a trainer that waits for its turn."""
    process.stdin.write("go\n")
    process.stdin.flush()
    return told(process)


def told(process: subprocess.Popen) -> dict:
    """The next thing that a child says; what its libraries print is passed over."""
    for line in process.stdout:
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise RuntimeError(f"{' '.join(process.args)} ended early: run it alone to see why")


def tell(**values) -> None:
    """The parent's next `told`."""
    print(MARK + json.dumps(values), flush=True)


def turn() -> tuple[float, float]:
    """Wait for the parent's word; the clock, and the processor time of this process, then."""
    if not sys.stdin.readline():
        sys.exit("the benchmark that this process served has ended")
    return time.perf_counter(), time.process_time()


def spent(begun: tuple[float, float]) -> dict[str, float]:
    """What has passed since a turn began."""
    clock, processor = begun
    return dict(seconds=time.perf_counter() - clock, processor=time.process_time() - processor)


def child(options: argparse.Namespace) -> None:
    """What a child process does."""
    if options.child == "checkpoint":
        write_checkpoint(options.directory)
    elif options.child == "jaxtune":
        run_jaxtune(options.directory, options.rounds + 1)
    else:
        run_trl(options.directory, options.rounds + 1, **TRAINERS[options.child])


def write_checkpoint(directory: Path) -> None:
    """A random checkpoint in bfloat16, as the makers publish theirs, unless it is there."""
    import ml_dtypes

    from jaxtune import families
    from jaxtune.checkpoint import names
    from jaxtune.checkpoint.files import write_sharded
    from jaxtune.checkpoint.load import leaf_shapes
    from jaxtune.models.decoder import Decoder

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(GEMMA_3_270M))
    _, family, config = families.read(directory)
    tensors = names.by_tensor(names.pieces(family.tables[0], leaf_shapes(Decoder(config))))
    plan = {name: (parts[0].shape, ml_dtypes.bfloat16) for name, parts in tensors.items()}
    random = np.random.default_rng(0)

    def produce(name):
        values = random.standard_normal(plan[name][0], np.float32) * 0.02
        return values.astype(ml_dtypes.bfloat16)

    if not (directory / "model.safetensors").exists():
        write_sharded(directory, plan, produce)


def rows(step: int) -> list[tuple[np.ndarray, int]]:
    """A step's rows: tokens, and how many of them are the prompt."""
    random = np.random.default_rng(step)
    made = []
    for _ in range(ROWS):
        prompt, palette = random.integers(50, 76), random.integers(40, 45)
        made.append((random.integers(3, 262_144, prompt + palette), int(prompt)))
    return made


def real_tokens(step: int) -> int:
    """Tokens of a step's rows, padding left out."""
    return sum(len(tokens) for tokens, _ in rows(step))


def run_jaxtune(directory: Path, steps: int) -> None:
    """Train, a step whenever the parent says so."""
    import jax

    import jaxtune

    model, variables = jaxtune.load(directory)
    model = dataclasses.replace(model, remat=REMAT)
    variables = jaxtune.add_lora(
        variables, rank=RANK, alpha=ALPHA, dropout=DROPOUT, key=jax.random.key(0)
    )
    optimizer = jaxtune.optimizer("adamw", "linear", total_steps=steps, **OPTIMIZER)
    state = jaxtune.TrainState.create(variables, optimizer=optimizer)
    tell(ready=True)
    for step in range(steps):
        begun = turn()
        state, metrics = jaxtune.train_step(model, optimizer, state, batch(step))
        jax.block_until_ready((state, metrics))
        tell(**spent(begun), loss=float(metrics["loss"]))


def batch(step: int):
    """A step's rows as jaxtune takes them."""
    from jaxtune.data.batches import collate, split
    from jaxtune.data.prompts import Example

    examples = [
        [Example(tokens.astype(np.int32), np.arange(len(tokens)) >= prompt, None, "")]
        for tokens, prompt in rows(step)
    ]
    return split(collate(examples, shape=(ROWS, LENGTH, SCORED)), PARTS)


def run_trl(directory: Path, steps: int, batch: int) -> None:
    """The same under TRL, which stops before every step until the parent says go on."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    data = Dataset.from_list(
        [
            dict(
                input_ids=tokens.tolist(),
                completion_mask=[0] * prompt + [1] * (len(tokens) - prompt),
            )
            for step in range(steps)
            for tokens, prompt in rows(step)
        ]
    )
    with tempfile.TemporaryDirectory() as scratch:
        settings = SFTConfig(
            output_dir=scratch,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=ROWS // batch,
            max_steps=steps,
            learning_rate=OPTIMIZER["lr"],
            weight_decay=OPTIMIZER["weight_decay"],
            max_grad_norm=OPTIMIZER["clip_norm"],
            lr_scheduler_type="linear",
            completion_only_loss=True,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        adapter = LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear"
        )
        trainer = SFTTrainer(
            model=model,
            args=settings,
            train_dataset=data,
            peft_config=adapter,
            processing_class=tokenizer(),
            callbacks=[turns()],
        )
        tell(ready=True)
        trainer.train()


def tokenizer():
    """One that knows the special tokens alone: the rows are numbers already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    special = dict(pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>")
    numbers = {token: number for number, token in enumerate(special.values())}
    words = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def turns():
    """The callback by which TRL's steps are timed and wait for their turn."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.begun = turn()

        def on_step_end(self, args, state, control, **kwargs):
            self.spent = spent(self.begun)

        def on_log(self, args, state, control, logs, **kwargs):
            if "loss" in logs:
                tell(**self.spent, loss=float(logs["loss"]))

    return Turns()


def report(found: dict[str, dict], rounds: int, busy: float) -> None:
    """The figures, and the bounds that ours keep to."""
    print(
        f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores, of which {busy:.1f} were busy"
    )
    print(f"median of {rounds} steps each; {ROWS} rows a step, tokens without padding")
    print(
        "first losses:", ", ".join(f"{name} {first_loss(run):.5f}" for name, run in found.items())
    )
    print("| | tokens a second | a step | of one core | peak memory |")
    print("| --- | --- | --- | --- | --- |")
    for name, run in found.items():
        seconds, processor = (middle(run, what) for what in ("seconds", "processor"))
        figures = (
            f"{rate(run):.0f} | {seconds:.1f} s | {processor:.1f} s | {run['peak'] / 1e9:.2f} GB"
        )
        print(f"| {name} | {figures} |")
    ours, *peers = found.values()
    faster = rate(ours) / max(rate(peer) for peer in peers)
    losses = [first_loss(run) for run in found.values()]
    kept = {
        f"{faster:.2f} times the peer's better rate, at least {FASTER}": faster >= FASTER,
        f"peak {ours['peak'] / 1e9:.2f} GB, at most {MEMORY / 1e9}": ours["peak"] <= MEMORY,
        "the same first loss": max(losses) - min(losses) <= SAME * min(losses),
    }
    for claim, holds in kept.items():
        print(f"{claim}: {'kept' if holds else 'BROKEN'}")
    sys.exit(not all(kept.values()))


def middle(run: dict, what: str) -> float:
    """The median over the steps after the first."""
    return statistics.median(step[what] for step in run["steps"][1:])


def rate(run: dict) -> float:
    """Tokens a second, the median over the steps after the first."""
    steps = list(enumerate(run["steps"]))[1:]
    return statistics.median(real_tokens(number) / step["seconds"] for number, step in steps)


def first_loss(run: dict) -> float:
    """The loss of the untrained adapter."""
    return run["steps"][0]["loss"]


def cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor()


if __name__ == "__main__":
    main()
