"""The example of DPO beside TRL's trainer."""

import jax
import jax.numpy as jnp
import pytest

import jaxtune
from examples import preference
from examples.preference import Preference, batch_of

PAIRS = [
    ("sea and sand:", "blue dusk", "rust"),
    ("moss:", "green", "snow and night"),
    ("clay, night:", "dusk", "sea"),
]
STEPS, BETA, RATE = 10, 0.3, 2e-3


@pytest.mark.slow
def test_losses_are_those_of_trl(base, tmp_path):
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    model, variables = jaxtune.load(base, "float32")
    variables = jaxtune.add_lora(variables, rank=4, alpha=8, key=jax.random.key(0))
    jaxtune.save_adapter(variables, tmp_path / "adapter", base)
    optimizer = jaxtune.optimizer("adamw", lr=RATE)
    state = jaxtune.TrainState.create(variables, optimizer=optimizer)
    tokenizer = model.origin.tokenizer
    batch = batch_of(tokenizer, PAIRS)
    ours = []
    for _ in range(STEPS):
        state, metrics = jaxtune.train_step(
            model, optimizer, state, batch, objective=Preference(jnp.float32(BETA))
        )
        ours.append(float(metrics["loss"]))

    class Given(DPOTrainer):
        """Takes rows as ids, so that both train on the same tokens."""

        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    class Losses(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in logs:
                theirs.append(logs["loss"])

    theirs: list[float] = []
    ids = [[tokenizer.encode(text) for text in pair] for pair in PAIRS]
    rows = [
        dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), each, strict=True)) for each in ids
    ]
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    trainer = Given(
        model=PeftModel.from_pretrained(plain, tmp_path / "adapter", is_trainable=True),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            max_steps=STEPS,
            per_device_train_batch_size=len(PAIRS),
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1e9,
            beta=BETA,
            gradient_checkpointing=False,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=[Losses()],
    )
    trainer.train()
    assert ours[0] == pytest.approx(0.693147, abs=1e-6)  # the adapter changes nothing yet
    assert ours[-1] < 0.9 * ours[0]
    assert ours == pytest.approx(theirs[:STEPS], rel=1e-4)
    assert torch.is_tensor(next(trainer.model.parameters()))


@pytest.mark.slow
def test_the_example_learns(capsys):
    found = preference.main(steps=10)
    assert found[-1]["loss"] < 0.5 * found[0]["loss"] and found[-1]["accuracy"] == 1
    assert "accuracy 1" in capsys.readouterr().out
