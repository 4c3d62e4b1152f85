"""Runs trainers in separate processes that take turns, one step each, and reports on them."""

import argparse
import datetime
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from shapes import cpu, write_checkpoint

Rows = list[tuple[np.ndarray, int]]  # rows of a step: tokens, and the length of their prompt
Run = dict[str, Any]  # a trainer's measurements: "steps", and "peak" memory in bytes
MARK = "measured "  # prefix of the lines that the parent process reads
CHECKPOINT = "checkpoint"  # name of the child that writes it, so that the parent stays small
SAME = 1e-4  # relative tolerance for losses of the first step, before any weight differs


def main(
    description: str,
    shape: Mapping,
    trainers: Mapping[str, Callable[[Path, int], None]],
    report: Callable[[dict[str, Run], argparse.Namespace], None],
) -> None:
    """Lets trainers take turns and reports; a child process runs one of them.

    Each trainer is called with the checkpoint's directory and the number of steps.
    """
    options = parse(description)
    if options.child == CHECKPOINT:
        write_checkpoint(options.directory, shape)
    elif options.child:
        trainers[options.child](options.directory, options.rounds + 1)
    elif importlib.util.find_spec("trl") is None:
        print("this benchmark compares with TRL, which is not installed; run: pip install trl")
        sys.exit(2)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            options.directory = options.directory or Path(scratch) / "base"
            subprocess.run(command(CHECKPOINT, options), check=True)
            options.busy = os.getloadavg()[0]
            report(measure(started(trainers, options), options.rounds), options)


def parse(description: str) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--directory", type=Path, help="where to write the checkpoint (default: temporary)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def command(name: str, options: argparse.Namespace) -> list[str]:
    """Returns the command line of a child process."""
    line = [sys.executable, sys.argv[0], "--child", name, "--directory", str(options.directory)]
    return [*line, "--rounds", str(options.rounds)]


# The parent


def measure(running: Mapping[str, subprocess.Popen], rounds: int) -> dict[str, Run]:
    """Runs trainers in turn; returns the results of their steps and their peak memory."""
    found = {name: dict(steps=[]) for name in running}
    for _ in range(rounds + 1):  # the first step compiles and warms up
        for name, process in running.items():
            found[name]["steps"].append(take_step(process))
    for name, process in running.items():
        process.stdin.close()
        process.stdout.close()
        _, process.returncode, used = os.wait4(process.pid, 0)
        found[name]["peak"] = used.ru_maxrss * 1024
    return found


def started(names: Iterable[str], options: argparse.Namespace) -> dict[str, subprocess.Popen]:
    """Starts the processes of trainers."""
    return {name: start(command(name, options)) for name in names}


def start(command: list[str], **environment: str) -> subprocess.Popen:
    """Starts a trainer's process; returns when it is ready for its first step."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"} | environment
    process = subprocess.Popen(command, env=environment, text=True, **pipes)
    receive(process)
    return process


def take_step(process: subprocess.Popen) -> dict:
    """Lets a waiting trainer take one step; returns its measurements."""
    process.stdin.write("go\n")
    process.stdin.flush()
    return receive(process)


def receive(process: subprocess.Popen) -> dict:
    """Returns the next measurements of a child, ignoring other lines that it prints."""
    for line in process.stdout:
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise RuntimeError(f"child process ended early; run it by itself: {' '.join(process.args)}")


# The children


def tell(**values) -> None:
    """Sends values to the parent, which reads them with `receive`."""
    print(MARK + json.dumps(values), flush=True)


def turn() -> tuple[float, float]:
    """Waits for the parent's go; returns the clock and this process's CPU time, in seconds."""
    if not sys.stdin.readline():
        sys.exit("the parent process has ended")
    return time.perf_counter(), time.process_time()


def spent(begun: tuple[float, float]) -> dict[str, float]:
    """Returns the seconds of wall-clock and CPU time since a turn began."""
    clock, processor = begun
    return dict(seconds=time.perf_counter() - clock, processor=time.process_time() - processor)


def train(model, variables, optimizer, batches: Iterable) -> None:
    """Trains with jaxtune, one step per turn."""
    import jax

    import jaxtune

    state = jaxtune.TrainState.create(variables, optimizer=optimizer)
    tell(ready=True)
    for batch in batches:
        begun = turn()
        state, metrics = jaxtune.train_step(model, optimizer, state, batch)
        jax.block_until_ready((state, metrics))
        tell(**spent(begun), loss=float(metrics["loss"]))


def examples(rows: Rows) -> list:
    """Returns the rows of a step as examples for jaxtune's batches."""
    from jaxtune.data.examples import Example

    return [
        Example(tokens.astype(np.int32), np.arange(len(tokens)) >= prompt, None, "")
        for tokens, prompt in rows
    ]


def trl(model, adapter: Mapping, rows: Iterable[Rows], **settings):
    """Returns a TRL trainer that waits for its turn before every step."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    data = [
        dict(
            input_ids=tokens.tolist(),
            completion_mask=[0] * prompt + [1] * (len(tokens) - prompt),
        )
        for step in rows
        for tokens, prompt in step
    ]
    common = dict(
        completion_only_loss=True,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=model,
        args=SFTConfig(**common, **settings),
        train_dataset=Dataset.from_list(data),
        peft_config=LoraConfig(target_modules="all-linear", **adapter),
        processing_class=tokenizer(),
        callbacks=[turns()],
    )


def tokenizer():
    """Returns a tokenizer of special tokens only, as the rows are token ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    special = dict(pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>")
    numbers = {token: number for number, token in enumerate(special.values())}
    words = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def turns():
    """Returns the callback that times TRL's steps and lets them wait for their turn."""
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


# The report


def table(found: Mapping[str, Run], rates: Mapping[str, float], rows: int, options) -> None:
    """Prints the measurements of every trainer as a table."""
    print(
        f"{datetime.date.today()}, {cpu()}, {os.cpu_count()} cores, "
        f"load average {options.busy:.1f} before the start"
    )
    print(f"median of {options.rounds} steps; {rows} rows per step; tokens exclude padding")
    losses = (f"{name} {first_loss(run):.5f}" for name, run in found.items())
    print("first losses:", ", ".join(losses))
    print("| | tokens per second | time per step | CPU time per step | peak memory |")
    print("| --- | --- | --- | --- | --- |")
    for name, run in found.items():
        seconds, processor = (median(run, what) for what in ("seconds", "processor"))
        figures = (
            f"{rates[name]:.0f} | {seconds:.1f} s | {processor:.1f} s | {run['peak'] / 1e9:.2f} GB"
        )
        print(f"| {name} | {figures} |")


def compare(kept: Mapping[str, bool]) -> None:
    """Prints which claims hold; exits with 1 unless all do."""
    for claim, holds in kept.items():
        print(f"{claim}: {'kept' if holds else 'BROKEN'}")
    sys.exit(not all(kept.values()))


def median(run: Run, what: str) -> float:
    """Returns the median of a measurement over the steps after the first."""
    return statistics.median(step[what] for step in run["steps"][1:])


def rate(run: Run, rows: Callable[[int], Rows]) -> float:
    """Returns the median tokens per second, without padding, over the steps after the first."""
    steps = list(enumerate(run["steps"]))[1:]
    return statistics.median(real_tokens(rows(number)) / step["seconds"] for number, step in steps)


def real_tokens(rows: Rows) -> int:
    """Returns the number of tokens in the rows of a step, without padding."""
    return sum(len(tokens) for tokens, _ in rows)


def first_loss(run: Run) -> float:
    """Returns the loss of the untrained adapter."""
    return run["steps"][0]["loss"]


def same_first_loss(runs: Iterable[Run]) -> bool:
    """Returns whether all trainers started with the same loss."""
    losses = [first_loss(run) for run in runs]
    return max(losses) - min(losses) <= SAME * min(losses)
