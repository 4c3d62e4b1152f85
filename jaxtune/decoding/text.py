"""Text generation: decodes answers to tokenised prompts, and returns or streams them as text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jaxtune.config.run_sections import Generate
from jaxtune.data.errors import TooLong
from jaxtune.data.examples import Chat, Form, RowEncoder, columns
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.decoding import generate
from jaxtune.decoding.incremental import TextStream
from jaxtune.decoding.requests import LONGEST, Completion
from jaxtune.decoding.sampling import Sampling
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import typed
from jaxtune.models.paligemma import Model


@dataclass(frozen=True)
class Answer:
    """An answer as text."""

    text: str  # without the stop token or stop string that ended it
    tokens: int  # number of tokens, the stop included
    log_prob: float  # log-probability of the whole answer
    ended: bool  # whether it ended by itself; False if it reached the token limit
    next: tuple[tuple[str, float], ...] = ()  # likeliest first tokens and their probabilities


def sampling_options(given: Generate) -> dict[str, float | None]:
    """Returns the settings that are arguments of `Sampling.of`."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition")
    return {name: getattr(given, name) for name in names}


@dataclass(frozen=True)
class TextGenerator:
    """A model with its tokenizer and decoding settings, which answers prompts as text."""

    model: Model
    variables: Mapping
    tokenizer: Tokenizer
    settings: Generate
    seed: int = 0

    def check(self, prompt: Sequence[int], place: str) -> None:
        """Raises TooLong if the prompt and its answer do not fit the model's context length."""
        context, new = self.model.config.context, self.settings.max_new_tokens
        if len(prompt) + new > context:
            raise TooLong(
                place,
                f"the prompt has {len(prompt):,} tokens, which with {new:,} new ones exceed the "
                f"model's context length of {context:,}; shorten it, or lower "
                "generate.max_new_tokens",
                len(prompt),
            )

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        likeliest: int = 0,
        images: Sequence[Any] | None = None,  # pictures of each prompt
    ) -> list[Answer]:
        """Returns an answer to each prompt, with its `likeliest` most probable first tokens."""
        given = self.settings
        found = generate.completions(
            self.model,
            self.variables,
            prompts,
            given.max_new_tokens,
            images=images,
            stops=self.tokenizer.stops,
            seed=self.seed,
            batch=given.batch,
            finished=self._finished if given.stops else None,
            **sampling_options(given),
        )
        first = self._next(prompts, likeliest, images) if likeliest else [()] * len(prompts)
        return [self._answer(*each) for each in zip(found, first, strict=True)]

    def stream(self, prompt: Sequence[int], images: Any = None) -> Iterator[str]:
        """Yields the text of an answer in pieces, as soon as no later token can change them."""
        stream, held = TextStream(self.tokenizer), ""  # settled text that is not yet yielded
        stops = self.settings.stops
        for token in generate.stream(
            self.model,
            self.variables,
            prompt,
            self.settings.max_new_tokens,
            images=images,
            stops=self.tokenizer.stops,
            sampling=Sampling.of(**sampling_options(self.settings)),
            seed=self.seed,
        ):
            if token in self.tokenizer.stops:
                break
            held += stream.push(token)
            # What is yielded ends before anything that may begin a stop string.
            if stops and self._cut(text := held + stream.waiting) != text:
                break
            ready = held[: len(held) - self._begun(held)]
            if ready:
                yield ready
                held = held[len(ready) :]
        if rest := self._cut(held + stream.waiting):
            yield rest

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text of an answer up to its stop token or first stop string."""
        kept = [token for token in tokens if token not in self.tokenizer.stops]
        return self._cut(self.tokenizer.decode(kept, continues=True))

    def _cut(self, text: str) -> str:
        """Returns a text up to its first stop string."""
        ends = [at for stop in self.settings.stops if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def _answer(self, completion: Completion, following: tuple) -> Answer:
        count = len(completion.tokens)
        # Decoding continued for a few tokens after the stop string, until the next check.
        while count and self._finished(completion.tokens[: count - 1]):
            count -= 1
        log_prob = sum(completion.log_probs[:count])
        return Answer(self.text(completion.tokens), count, log_prob, completion.ended, following)

    def _finished(self, tokens: Sequence[int]) -> bool:
        if not self.settings.stops:
            return False
        text = self.tokenizer.decode(tokens, continues=True)
        return any(stop in text for stop in self.settings.stops)

    def _begun(self, text: str) -> int:
        """Returns the length of the longest end of a text that may begin a stop string."""
        begun = (
            length
            for stop in self.settings.stops
            for length in range(1, len(stop))
            if text.endswith(stop[:length])
        )
        return max(begun, default=0)

    def _next(self, prompts: Sequence[Sequence[int]], count: int, images: Any) -> list[tuple]:
        count = min(count, self.model.config.vocabulary)
        found = generate.next_tokens(
            self.model, self.variables, prompts, count, images=images, batch=self.settings.batch
        )
        return [
            tuple(
                (self.tokenizer.decode([token], continues=True), log_prob)
                for token, log_prob in row
            )
            for row in found
        ]


def answers(
    model: Model,
    variables: Mapping,
    prompts: Sequence[str | Sequence[Mapping[str, Any]]],
    max_new_tokens: int = 64,
    *,
    tokenizer: Tokenizer | None = None,
    images: Sequence[Any] | None = None,
    seed: int = 0,
    **settings: Any,
) -> list[Answer]:
    """Returns an answer in text to each prompt.

    Args:
      model: The model.
      variables: Its variables.
      prompts: Texts, or conversations as lists of messages, `{"role": …, "content": …}`, which the
        chat template writes.
      max_new_tokens: Limit on the tokens of an answer.
      tokenizer: The tokenizer; by default that of the checkpoint.
      images: Pictures of each prompt, as in `generate`.
      seed: Random seed of sampling.
      **settings: Fields of the config's section `generate`: `temperature`, `top_k`, `top_p`,
        `min_p`, `repetition`, `stops` and `batch`.

    Returns:
      The answers in the order of the prompts.
    """
    tokenizer = tokenizer or tokenizer_of(model)
    given = settings_of({"max_new_tokens": max_new_tokens, **settings})
    ids = [_prompt(number, prompt, tokenizer) for number, prompt in enumerate(_listed(prompts))]
    return TextGenerator(model, variables, tokenizer, given, seed).answers(ids, images=images)


def settings_of(given: Mapping[str, Any]) -> Generate:
    """Returns settings of decoding by name; raises UserError for a name that is none of them."""
    names = [each.name for each in fields(Generate)]
    if unknown := given.keys() - set(names):
        raise UserError(f"found the argument {min(unknown)!r}; expected some of {', '.join(names)}")
    return Generate(**given)


def tokenizer_of(model: Model) -> Tokenizer:
    """Returns the tokenizer of the model's checkpoint; raises UserError if it has none."""
    if model.origin is None:
        raise UserError(
            "the model was not loaded from a checkpoint, so its tokenizer is not known; pass "
            "tokenizer=jaxtune.Tokenizer.open(directory)"
        )
    return model.origin.tokenizer


def _listed(prompts: Any) -> Sequence[Any]:
    if not isinstance(prompts, list | tuple):
        raise UserError(
            f"prompts is {typed(prompts)}; expected a list of texts or conversations, "
            'such as ["Product: kite\\nCategory:"]'
        )
    return prompts


def _prompt(number: int, prompt: Any, tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens of a text, or of a conversation up to the assistant's turn."""
    if isinstance(prompt, str):
        form: Form = columns("prompt", "prompt")
    elif isinstance(prompt, list | tuple) and all(isinstance(each, Mapping) for each in prompt):
        form = Chat("prompt")
    else:
        raise UserError(
            f"prompt {number} is {repr(prompt)[:60]}; expected a text, or a list of messages such "
            'as {"role": "user", "content": "…"}. jaxtune.generate takes token ids'
        )
    encode = RowEncoder(tokenizer, form, max_length=LONGEST)
    return encode.prompt({"prompt": prompt}, f"prompt {number}")
