"""Each known template writes what the published one of its models does."""

import os

import pytest

from jaxtune.config.schema import FIELDS
from jaxtune.data.errors import DataError
from jaxtune.data.known_templates import KNOWN, check_fits, template_text
from jaxtune.data.tokenizer import Tokenizer

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "two?"},
]
# What the templates that the models were published with write of these messages.
PUBLISHED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n"
    "<|im_start|>assistant\nFirst.<|im_end|>\n<|im_start|>user\ntwo?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "gemma": "<bos><start_of_turn>user\nBe brief.\n\none?<end_of_turn>\n<start_of_turn>model\n"
    "First.<end_of_turn>\n<start_of_turn>user\ntwo?<end_of_turn>\n<start_of_turn>model\n",
    "llama2": "<bos>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\none? [/INST] First. <eos>"
    "<bos>[INST] two? [/INST]",
    "llama3": "<bos><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\none?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nFirst.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\ntwo?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "phi3": "<|system|>\nBe brief.<|end|>\n<|user|>\none?<|end|>\n<|assistant|>\nFirst.<|end|>\n"
    "<|user|>\ntwo?<|end|>\n<|assistant|>\n",
    "zephyr": "<|system|>\nBe brief.<eos>\n<|user|>\none?<eos>\n<|assistant|>\nFirst.<eos>\n"
    "<|user|>\ntwo?<eos>\n<|assistant|>\n",
    "alpaca": "Be brief.\n\n### Instruction:\none?\n\n### Response:\nFirst.<eos>\n\n"
    "### Instruction:\ntwo?\n\n### Response:\n",
}
FITTING = {"chatml": "qwen", "gemma": "gemma", "llama3": "llama", "phi3": "phi"}


@pytest.mark.parametrize("name", KNOWN)
def test_they_write_what_was_published(reference, name):
    theirs = reference("gemma")
    text = theirs.apply_chat_template(
        MESSAGES, chat_template=template_text(name), add_generation_prompt=True, tokenize=False
    )
    assert text == PUBLISHED[name]


@pytest.mark.parametrize("name", KNOWN)
def test_they_encode_as_transformers_does_and_score_the_answers(checkpoint, reference, name):
    kind = FITTING.get(name, "gemma")
    template = template_text(name)
    ours, theirs = Tokenizer.open(checkpoint(kind), template=template), reference(kind)
    assert ours.chat_template == template
    asked = theirs.apply_chat_template(
        MESSAGES, chat_template=template, add_generation_prompt=True, return_dict=False
    )
    if name not in ("llama2", "alpaca", "zephyr"):  # transformers drops spaces beside some tokens
        assert ours.ask(MESSAGES) == asked
    spans = ours.chat([*MESSAGES[:3]])
    (scored,) = [span for span in spans if span.scored]
    assert ours.decode(scored.ids, special=True).strip().startswith("First.")
    assert scored.ids[-1] in ours.stops  # so that generation ends there
    own = Tokenizer.open(checkpoint(kind)).chat_template
    assert own is not None and own != template


def test_the_help_names_them_all():
    meaning = FIELDS["data.chat_template"].metadata["meaning"]
    assert all(name in meaning for name in KNOWN)


def test_templates_that_do_not_fit(tokenizer):
    specials = tokenizer("gemma").specials
    check_fits("gemma", specials, "<eos>")
    check_fits("my_file.jinja", (), None)
    message = (
        r"'llama3' writes <\|start_header_id\|>, .*; expected alpaca, gemma, llama2, zephyr, or a"
    )
    with pytest.raises(DataError, match=message):
        check_fits("llama3", specials, "<eos>")
    with pytest.raises(
        DataError, match=r"'alpaca' writes an end token \(EOS\), which is no special"
    ):
        check_fits("alpaca", specials, None)


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}é")
    assert template_text(str(file)) == "{{ messages[0].content }}é"
    for name in ("none.jinja", "{{ messages }}", "a\0b", "Gemma"):
        with pytest.raises(
            DataError, match=r"no such file, and no known template; .*alpaca, chatml"
        ):
            template_text(name)
    file.write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"mine\.jinja' cannot be read: .*codec"):
        template_text(str(file))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match=r"cannot be read: expected a regular file"):
        template_text(str(file))
