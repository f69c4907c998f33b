"""The format of conversations, read off a chat template by rendering small ones with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
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
_REPLY: ChatMessage = {"role": "user", "content": "probe_reply"}
_RESULT: ChatMessage = {"role": "tool", "content": "probe_result"}
_CALL = ToolCall("probe_tool", {"probe": "value", "switch": True, "nothing": None, "list": [1]})
_FUNCTION = {"name": _CALL.name, "arguments": _CALL.arguments}
_CALLING: ChatMessage = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": _FUNCTION}],
}


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a template writes the turns of a conversation, and what stands around them."""

    render: Render
    thinking: bool  # whether the policy is asked to think
    turn_end: str  # token behind every turn
    calls: CallFormat
    no_thought: str  # ends a thought that the prompt begins, where none is written

    def following(self, messages: Sequence[ChatMessage]) -> str:
        """What stands behind the end of a turn: these messages, and the start of the next turn."""
        turn = {"role": "assistant", "content": _TURN}
        text = self.render([_QUESTION, turn, *messages], True, self.thinking)
        return text.partition(_TURN + self.turn_end)[2]


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
        as_thinking, as_asked = (
            ChatFormat(render, thinks, turn_end, calls, _no_thought(render, calls, thinks))
            for thinks in (True, thinking)
        )
        for message, kind in ((_RESULT, "tool messages"), (_REPLY, "a message of the user")):
            if message["content"] not in as_thinking.following([message]):
                raise ValueError(f"does not render {kind} behind a turn")
        _require_preserved_prefix(as_thinking)
        return as_asked
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


def _no_thought(render: Render, calls: CallFormat, thinking: bool) -> str:
    """What the template writes between the start of a turn that it begins and its first call."""
    begun = render([_QUESTION], True, thinking)
    told = render([_QUESTION, _CALLING, _RESULT], True, thinking)
    return told.removeprefix(begun).partition(calls.write([_CALL]))[0] if begun in told else ""


def _calls(render: Render, turn_end: str) -> CallFormat:
    """The format in which the template writes a call."""
    text = render([_QUESTION, _CALLING], False, True)
    for each in FORMATS:
        if each.write([_CALL]) + turn_end in text:
            return each
    begins, known = text.partition(str(_QUESTION["content"]))[2], [each.name for each in FORMATS]
    raise ValueError(f"writes calls as no parser reads them ({', '.join(known)}): {begins[:200]!r}")


def _require_preserved_prefix(found: ChatFormat) -> None:
    """Prompt, turn, result, turn, result put together are what the template makes of them all."""
    turn = found.no_thought + found.calls.write([_CALL]) + found.turn_end
    turn += found.following([_RESULT])
    ours = found.render([_QUESTION], True, True) + turn + turn
    theirs = found.render([_QUESTION, *[_CALLING, _RESULT] * 2], True, True)
    if theirs != ours:
        pairs = enumerate(zip_longest(ours, theirs))
        at = max(0, next(place for place, (mine, other) in pairs if mine != other) - 20)
        raise ValueError(
            "does not preserve what was sampled: where a turn is followed by other messages it "
            f"writes {theirs[at : at + 80]!r} instead of {ours[at : at + 80]!r}. A policy would be "
            "trained on other tokens than it saw; use a template that only appends"
        )
