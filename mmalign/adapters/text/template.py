"""What a chat template makes of a sample: the prompt's text and the text of its completion.

The prompt is what generation is given. The completion is what the template adds for the assistant's
message up to and with the token that ends its turn; what follows that token (often a newline) is
the template's and never had to be produced. Where a template writes a finished turn otherwise than
its own generation prompt begins it (some open a "think" block), the completion is the response and
the end of turn: what the model would have to answer to the prompt that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mmalign.adapters.protocol import BadSample
from mmalign.errors import UserError
from mmalign.records import PLAIN, Media, Message, Part, Text, text_of

_PROBE = "Probe"


@dataclass(frozen=True)
class Rendered:
    """prompt, completion: as text. offset: of the response's first character in the completion,
    None where the template rewrote the response. plain: without template, still without its end."""

    prompt: str
    completion: str
    offset: int | None
    plain: bool


@dataclass(frozen=True)
class EndOfTurn:
    """text: what a completion ends with. written: all that the template writes behind a message."""

    text: str
    written: str


def is_plain(prompt: Sequence[Message]) -> bool:
    """Raises BadSample for a prompt that mixes plain text and chat messages, or is empty."""
    roles = {message.role for message in prompt}
    if not roles:
        raise BadSample("the prompt has no message")
    if PLAIN in roles and len(roles) > 1:
        raise BadSample(f"the prompt mixes role {PLAIN!r} with {sorted(roles - {PLAIN})}")
    return PLAIN in roles


@dataclass(frozen=True)
class Contents:
    """How a message's parts are written: for a chat template, and in a prompt used verbatim."""

    chat: Callable[[Sequence[Part]], Any]
    plain: Callable[[Sequence[Part]], str]


def only_text(parts: Sequence[Part], where: str) -> str:
    for part in parts:
        if isinstance(part, Media):
            raise BadSample(
                f"the {where} holds an {part.kind}, which a text model cannot take: "
                "use a vision-language model, or drop the media"
            )
    return text_of(tuple(parts))


def _prompt_text(parts: Sequence[Part]) -> str:
    return only_text(parts, "prompt")


TEXT_ONLY = Contents(_prompt_text, _prompt_text)


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], contents: Contents = TEXT_ONLY
) -> str:
    """What generation sees, as text."""
    if is_plain(prompt):
        return "".join(contents.plain(message.parts) for message in prompt)
    return _apply(tokenizer, _messages(prompt, contents), add_generation_prompt=True)


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    response: Sequence[Part],
    end: EndOfTurn | None,
    contents: Contents = TEXT_ONLY,
) -> Rendered:
    """`end` is what `end_of_turn` found; it is needed for chats only."""
    answer = only_text(response, "response")
    opening = render_prompt(tokenizer, prompt, contents)
    if is_plain(prompt):
        return Rendered(opening, answer, 0, plain=True)
    assert end is not None  # render_prompt has refused chats without a template
    turns = _messages([*prompt, Message("assistant", (Text(answer),))], contents)
    finished = _apply(tokenizer, turns, add_generation_prompt=False)
    if not (finished.startswith(opening) and finished.endswith(end.written)):
        return Rendered(opening, answer + end.text, 0, plain=False)
    body = finished[len(opening) : len(finished) - len(end.written)]
    return Rendered(opening, body + end.text, _offset(body, answer), plain=False)


def end_of_turn(
    tokenizer: PreTrainedTokenizerBase, contents: Contents = TEXT_ONLY
) -> EndOfTurn | None:
    """How the template ends an assistant's turn, found by rendering one. None without a template.

    The end is the first special token behind the message; a template without one gets the
    tokenizer's end-of-sequence token there.
    """
    if tokenizer.chat_template is None:
        return None
    messages = [Message("user", (Text("Hi"),)), Message("assistant", (Text(_PROBE),))]
    turns = _messages(messages, contents)
    _, written, after = _apply(tokenizer, turns, add_generation_prompt=False).rpartition(_PROBE)
    if not written:
        raise UserError(
            "the chat template does not write out what the assistant says",
            hint="pass another one as chat_template=",
        )
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    found = [(after.index(token), token) for token in special if token and token in after]
    if not found:
        return EndOfTurn(after.rstrip() + (tokenizer.eos_token or ""), after)
    start, token = min(found, key=lambda pair: (pair[0], -len(pair[1])))
    return EndOfTurn(after[: start + len(token)], after)


def _offset(body: str, answer: str) -> int | None:
    """Where the answer's first character is (or, stripped by the template, would be) in `body`."""
    stripped = answer.strip()
    if body.endswith(answer):
        return len(body) - len(answer)
    if body.endswith(stripped):
        return len(body) - len(stripped) - answer.find(stripped)
    return None


def _messages(prompt: Sequence[Message], contents: Contents) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": contents.chat(message.parts)} for message in prompt]


def _apply(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]], *, add_generation_prompt: bool
) -> str:
    if tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat template",
            hint="pass chat_template= (a Jinja template or a file with one), or give prompts the "
            f"role {PLAIN!r}",
        )
    try:
        text: Any = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise BadSample(f"the chat template refuses the conversation: {error}") from error
    return str(text)


def spans_of(parts: Sequence[Part]) -> list[tuple[int, int, float]]:
    """(start, end, weight) in characters of the joined response."""
    spans, start = [], 0
    for part in parts:
        if isinstance(part, Text):
            spans += [(start + s.start, start + s.end, s.weight) for s in part.weights]
            start += len(part.text)
    return spans
