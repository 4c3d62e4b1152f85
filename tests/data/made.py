"""Tokenizers as model families publish them, with vocabularies of a few hundred tokens.

`split` files put no space before a text; of the spaced ones, `phi` puts it before every run of
text between two tokens, `mistral` before the first alone, as their makers' files do.
"""

import io
import json

import sentencepiece
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

WORDS = [
    "hello world, this is a test of many words",
    "Describe: a calm sea at dawn\nColors: [#aabbcc, #00ff88, #123456]",
    "the price is $12.50 and not $7.00",
    "the quick brown fox jumps over the lazy dog",
    "user assistant system model You are helpful. What is two plus two? Four.",
]

GEMMA_CHAT = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set lead = messages[0]['content'] + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set lead = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('user and assistant must take turns') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (lead if loop.first else '') }}
    {{- message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""

LLAMA_CHAT = """{{- bos_token }}
{%- set today = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday Date: " + today + "\n\n" }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=2) + "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

# An answer keeps its thoughts only after the last question.
QWEN_CHAT = """
{%- set ns = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set thoughts = message.reasoning_content or '' %}
        {%- if '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last %}
            {{- '<think>\n' + thoughts + '\n</think>\n\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

PHI_CHAT = """{% for message in messages %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}
"""

MISTRAL_CHAT = """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + message['content'] + eos_token }}
{%- endif %}{% endfor %}"""

# The tokens of its turns are text, all but the one that ends them.
ZEPHYR_CHAT = """{% for message in messages %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

GENERATION_CHAT = """{% for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}
{% generation %}{{ message.content }}{% endgeneration %}
{{- '<|im_end|>\n' }}
{%- else %}
{{- message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def train_sentencepiece(file, **changes):
    """A SentencePiece model that keeps texts as they are."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20),
        model_writer=model,
        **{
            "vocab_size": 420,
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "add_dummy_prefix": False,
            "pad_id": 0,
            "eos_id": 1,
            "bos_id": 2,
            "unk_id": 3,
            "bos_piece": "<bos>",
            "eos_piece": "<eos>",
            "user_defined_symbols": ["<start_of_turn>", "<end_of_turn>", "\n\n", "<loc01>"],
            "minloglevel": 2,
            **changes,
        },
    )
    file.write_bytes(model.getvalue())


def sentencepiece_gemma(directory):
    """As PaliGemma's: no settings, no template, no space before a text."""
    train_sentencepiece(directory / "tokenizer.model")


def sentencepiece_chat(directory):
    """A `.model` beside settings and a chat template."""
    train_sentencepiece(directory / "tokenizer.model")
    settings(directory, GEMMA_CHAT, bos="<bos>", eos="<eos>", add_bos_token=True)


def sentencepiece_spaced(directory):
    """As Llama 2's: a space before every text."""
    pieces = {"bos_piece": "<s>", "eos_piece": "</s>"}
    train_sentencepiece(directory / "tokenizer.model", add_dummy_prefix=True, **pieces)


def gemma(directory):
    tokenizer = bytes_fallback(normalizers.Replace(" ", "▁"))
    train(tokenizer, ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"])
    tokenizer.add_tokens(["<loc01>", "\n\n"])
    save(tokenizer, directory, bos="<bos>")
    settings(directory, GEMMA_CHAT, bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>")
    stops = {"eos_token_id": [1, 5]}
    (directory / "generation_config.json").write_text(json.dumps(stops))


def llama(directory):
    tokenizer = byte_level()
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id"]
    train(tokenizer, [f"<|{name}|>" for name in names])
    save(tokenizer, directory, bos="<|begin_of_text|>")
    settings(directory, LLAMA_CHAT, bos="<|begin_of_text|>", eos="<|end_of_text|>")


def qwen(directory):
    tokenizer = byte_level()
    train(tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>")])
    save(tokenizer, directory)
    settings(directory, QWEN_CHAT, eos="<|im_end|>", pad="<|endoftext|>")


def generation(directory):
    qwen(directory)
    settings(directory, GENERATION_CHAT, eos="<|im_end|>", pad="<|endoftext|>")


def phi(directory):
    spaced = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer = bytes_fallback(normalizers.Sequence(spaced))
    names = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    train(tokenizer, ["<unk>", "<s>", *(AddedToken(n, rstrip=True, special=True) for n in names)])
    save(tokenizer, directory)
    settings(directory, PHI_CHAT, bos="<s>", eos="<|endoftext|>", unk="<unk>")


def mistral(directory):
    tokenizer = bytes_fallback(None)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    train(tokenizer, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    save(tokenizer, directory, bos="<s>")
    settings(directory, MISTRAL_CHAT, bos="<s>", eos="</s>", unk="<unk>")


def zephyr(directory):
    mistral(directory)
    settings(directory, ZEPHYR_CHAT, bos="<s>", eos="</s>", unk="<unk>")


KINDS = {
    each.__name__: each
    for each in (
        sentencepiece_gemma,
        sentencepiece_chat,
        sentencepiece_spaced,
        gemma,
        llama,
        qwen,
        generation,
        phi,
        mistral,
        zephyr,
    )
}


def bytes_fallback(normalizer):
    """BPE over characters, with bytes for those it does not know."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    begins = [decoders.Strip(" ", 1, 0)] if "Prepend" in str(normalizer) or not normalizer else []
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *begins]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train(tokenizer, special):
    """A vocabulary that begins with the special tokens and knows every byte."""
    byte_level = isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    known = [] if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + len(known) + 420,
        special_tokens=[*special, *known],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS * 5, trainer)


def save(tokenizer, directory, bos=None):
    """Write tokenizer.json, without the bytes among its special tokens."""
    if bos is not None:
        number = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, number)]
        )
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    (directory / "tokenizer.json").write_text(json.dumps(state))


def settings(directory, template, *, bos=None, eos=None, pad=None, unk=None, **more):
    named = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    config |= {**named, **more}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
