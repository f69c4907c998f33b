"""The format of conversations, read off a chat template by rendering small ones with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import Any

from jinja2 import TemplateError

from matchtir.tools.formats import FORMATS, CallFormat
from matchtir.types import ToolCall

ChatMessage = dict[str, Any]  # of the chat-completions protocol
# Messages to text; whether the next turn is begun behind them, by a policy that thinks or not.
Render = Callable[[Sequence[ChatMessage], bool, bool], str]


def plain_text(content: Any) -> str:
    """The content of a message: a text, a list of parts of which the texts count, or none."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or () if part.get("type") == "text")


# Besides the token that a template writes behind a turn, these end one.
OTHER_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|eom_id|>")

_QUESTION: ChatMessage = {"role": "user", "content": "probe question"}
_TURN = "probe turn"
_REPLY = "probe reply"
_RESULTS = (' first "probe" result ', 'second "probe" result')  # JSON escapes, some may trim
_CALL = ToolCall("probe_tool", {"probe": "value", "switch": True, "nothing": None, "list": [1]})
_FUNCTION = {"name": _CALL.name, "arguments": _CALL.arguments}
_CALLING: ChatMessage = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": _FUNCTION}],
}


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What stands around the turns of a conversation."""

    turn_end: str  # token behind every turn
    calls: CallFormat
    opening: str  # between the end of a turn and the first result of its calls
    between: str  # two results
    closing: str  # behind the last one: the next turn is begun
    results_as_json: bool  # a result is written as a JSON string
    results_trimmed: bool  # without the space around it
    reply: tuple[str, str]  # before and behind a message of the user that answers a turn
    no_thought: str = ""  # ends a thought that the prompt begins, where none is written

    def results(self, outputs: Sequence[str]) -> str:
        """What follows the end of a turn with calls."""
        if self.results_trimmed:
            outputs = [output.strip() for output in outputs]
        if self.results_as_json:
            outputs = [json.dumps(output, ensure_ascii=False) for output in outputs]
        return self.opening + self.between.join(outputs) + self.closing


def read_format(
    render: Render, thinking: bool, added_tokens: Sequence[str], name: str
) -> ChatFormat:
    """The format of a template.

    Args:
        render: writes messages by the template.
        thinking: whether the policy is asked to think.
        added_tokens: of the vocabulary.
        name: of the tokenizer, for errors.

    Raises:
        ValueError: the template does not render calls or their results, writes calls in a way that
            no parser reads, or renders a turn otherwise once other messages follow it: what was
            sampled would not be what the template makes of it.
    """
    try:
        turn_end = _turn_end(render, added_tokens)
        calls = _calls(render, turn_end)
        # Where a policy must not think, a template may begin its turn with an empty thought, which
        # it leaves out of the history: the renderer's own exception.
        as_thinking = _whole_format(render, turn_end, calls, True)
        _require_preserved_prefix(render, as_thinking)
        return as_thinking if thinking else _whole_format(render, turn_end, calls, False)
    except (ValueError, TemplateError) as error:
        why = f"does not render tools: {error}" if isinstance(error, TemplateError) else error
        raise ValueError(f"the chat template of {name!r} {why}") from error


def _turn_end(render: Render, added_tokens: Sequence[str]) -> str:
    """The token that the template writes behind a turn."""
    text = render([_QUESTION, {"role": "assistant", "content": _TURN}], False, True)
    _, turn, tail = text.partition(_TURN)
    ends = [token for token in added_tokens if tail.startswith(token)]
    if not turn or not ends:
        raise ValueError(f"ends a turn with {tail[:20]!r}: a policy has no token that does so")
    return max(ends, key=len)


def _whole_format(render: Render, turn_end: str, calls: CallFormat, thinking: bool) -> ChatFormat:
    """What the template writes around the messages that follow a turn, and in which form."""

    def behind_turn(*messages: ChatMessage) -> str:
        turn = {"role": "assistant", "content": _TURN}
        text = render([_QUESTION, turn, *messages], True, thinking)
        return text.partition(_TURN + turn_end)[2]

    tail = behind_turn(*({"role": "tool", "content": text} for text in _RESULTS))
    before, found, behind = behind_turn({"role": "user", "content": _REPLY}).partition(_REPLY)
    if not found:
        raise ValueError("does not render a message of the user behind a turn")
    no_thought = _no_thought(render, calls, thinking)
    for as_json, trimmed in product((True, False), (False, True)):
        texts = (each.strip() if trimmed else each for each in _RESULTS)
        first, second = (json.dumps(each) if as_json else each for each in texts)
        opening, found, rest = tail.partition(first)
        between, also_found, closing = rest.partition(second)
        if found and also_found:
            around = (opening, between, closing)
            reply = before, behind
            return ChatFormat(turn_end, calls, *around, as_json, trimmed, reply, no_thought)
    raise ValueError("does not render tool messages")


def _no_thought(render: Render, calls: CallFormat, thinking: bool) -> str:
    """What the template writes between the start of a turn that it begins and its first call."""
    begun = render([_QUESTION], True, thinking)
    told = render([_QUESTION, _CALLING, {"role": "tool", "content": _RESULTS[0]}], True, thinking)
    return told.removeprefix(begun).partition(calls.write([_CALL]))[0] if begun in told else ""


def _calls(render: Render, turn_end: str) -> CallFormat:
    """The format in which the template writes a call."""
    text = render([_QUESTION, _CALLING], False, True)
    for each in FORMATS:
        if each.write([_CALL]) + turn_end in text:
            return each
    begins, known = text.partition(str(_QUESTION["content"]))[2], [each.name for each in FORMATS]
    raise ValueError(f"writes calls as no parser reads them ({', '.join(known)}): {begins[:200]!r}")


def _require_preserved_prefix(render: Render, found: ChatFormat) -> None:
    """Prompt, turn, results, turn, results put together are what the template makes of them all."""
    exchange = [_CALLING, {"role": "tool", "content": _RESULTS[0]}]
    turn = found.no_thought + found.calls.write([_CALL]) + found.turn_end
    turn += found.results([_RESULTS[0]])
    ours = render([_QUESTION], True, True) + turn + turn
    theirs = render([_QUESTION, *exchange, *exchange], True, True)
    if theirs != ours:
        pairs = enumerate(zip_longest(ours, theirs))
        at = max(0, next(place for place, (mine, other) in pairs if mine != other) - 20)
        raise ValueError(
            "does not preserve what was sampled: where a turn is followed by other messages it "
            f"writes {theirs[at : at + 80]!r} instead of {ours[at : at + 80]!r}. A policy would be "
            "trained on other tokens than it saw; use a template that only appends"
        )
