"""What a card reads of the base, of the evaluations and of the losses."""

import json

from jaxtune.export import card, card_facts
from tests.export.cards import config, exported, rewrite


def test_a_base_of_the_cache_is_found_there(workdir, tmp_path, monkeypatch):
    base = tmp_path / "cache" / "models--maker--seeing"
    snapshot = base / "snapshots" / ("1b" * 20)
    snapshot.mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("1b" * 20)
    (snapshot / "config.json").write_text(json.dumps({"vision_config": {}, "license": "mit"}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    target = workdir / "export" / "adapter"
    text = card.write(target, workdir, config("maker/seeing"), kind="adapter").read_text()
    assert "1b1b" in text and "license: mit" in text
    assert 'transformers.AutoModelForImageTextToText.from_pretrained("maker/seeing")' in text


def test_an_evaluation_of_other_weights_is_left_out(workdir):
    adapter, merged = (workdir / "export" / name for name in ("adapter", "merged"))
    rewrite(merged / "export.json", **exported(workdir))

    def told(target):
        kind = "merged" if target == merged else "adapter"
        return card.write(target, workdir, config("base"), kind=kind).read_text()

    assert "answered by this model, with" in told(adapter)
    assert "answered by the adapter on its base, before merging, with" in told(merged)
    rewrite(merged / "export.json", step=4)
    assert "rows answered" not in told(merged)
    (adapter / "adapter_model.safetensors").write_bytes(b"others")
    assert "Held-out loss" in told(adapter) and "rows answered" not in told(adapter)


def test_losses_are_those_of_what_was_exported(workdir):
    target = workdir / "export" / "adapter"
    with (workdir / "metrics.jsonl").open("w") as file:
        for step, loss in ((0, 6.0), (4, 1.5), (8, 2.0)):
            file.write(json.dumps({"step": step, "kind": "eval", "loss": loss}) + "\n")

    def told(**changes):
        return card.write(target, workdir, config("base", **changes), kind="adapter").read_text()

    assert "**2.0000** after step 8" in told()
    rewrite(target / "export.json", step=4)
    assert "**1.5000** after step 4" in told()
    rewrite(target / "export.json", step=5)
    assert "Held-out loss" not in told()
    (target / "export.json").unlink()
    rewrite(workdir / "summary.json", eval_step=4)
    assert "**1.5000** after step 4" in told()
    assert "**2.0000** after step 8" in told(checkpoint={"best": False})


def test_long_curves_are_drawn_of_few_points(tmp_path):
    points = [(step, float(step % 2)) for step in range(1, 2001)]
    thin = card_facts._thinned(points)
    assert len(thin) == card_facts.MOST_DRAWN and thin[0] == (2.5, 0.5)
    assert card_facts._thinned(points[:3]) == [(1, 1), (2, 0), (3, 1)]
    assert card_facts._thinned([]) == []
