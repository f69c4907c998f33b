"""Where messages become tokens: prompts, observations and written turns, id for id the template's.

The ids that a policy sampled are never decoded and encoded again: what follows them is appended.
"""

from __future__ import annotations

import contextlib
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from matchtir.rollout.templates import OTHER_ENDS, ChatMessage, plain_text, read_format
from matchtir.tools.formats import SURROGATE, outside_thinking
from matchtir.types import Message, Span, SpanKind, Task, ToolResult

DEFAULT_SYSTEM_PROMPT = (
    "Answer the question with the help of the tools. You may call several tools in one turn; their "
    "results come back in the next message. A malformed call is answered by an error message, and "
    "the dialogue goes on. When you know the answer, make no further call and finish with "
    "<answer>your answer</answer>."
)

CALL_END = "</tool_call>"

# Marks where a text is cut before it is encoded. A lone surrogate cannot be encoded, so no
# text that reaches a tokenizer contains one.
_CUT = "\ud800"


class _Escaper:
    """Cuts a text inside each control token in it, so that none can be encoded as one."""

    def __init__(self, control_tokens: Iterable[str]) -> None:
        # The first character is matched, the rest only looked at: overlaps are found too.
        tokens = [token for token in control_tokens if len(token) > 1]
        self._starts = re.compile(
            "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in tokens)
        )

    def text(self, text: str) -> str:
        """The text with cuts; lone surrogates become U+FFFD."""
        return self._starts.sub(lambda start: start.group() + _CUT, SURROGATE.sub("\ufffd", text))

    def json(self, value: Any) -> Any:
        """A JSON value with cuts in all of its texts, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.json(key): self.json(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.json(item) for item in value]
        return value


class Renderer:
    """Renders conversations of tools in the format of a tokenizer's own chat template.

    Prompt, sampled turn, observation, sampled turn ... put together are, id for id, what the
    template gives for the same messages, where the turns are written as the template writes them.
    Two exceptions lie in templates. With thinking off Qwen3's puts an empty think block before a
    turn to be sampled, and leaves it out where it renders that turn as history. It stays here,
    because the policy saw it. Where a prompt begins a thought (Qwen3.5 and later), a written turn
    without one ends it first: the same text, but what meets there is not encoded as one token.

    Questions, tool schemas and tool results are data: a control token written in them
    (``<|im_end|>``, ``<tool_call>``, ...) is encoded as plain text and decodes to itself.

    Args:
        tokenizer: a tokenizer with a chat template that renders tool messages, in a format that
            `read_format` knows (Qwen2.5, Qwen3, Qwen3-Coder, Qwen3.5 and later, Llama 3.1).
        system_prompt: trusted text, with control tokens live; empty: no system message.
        thinking: whether the policy is asked to think; a template without that switch ignores it.
        stop_at_call: a turn also ends with its first call. What the policy would have written
            behind it costs nothing then, but calls side by side in one turn are ruled out.

    Raises:
        ValueError: the tokenizer lacks one of these, its template does not preserve what was
            sampled, or it cannot encode a conversation in parts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system_prompt: str = DEFAULT_SYSTEM_PROMPT,
        thinking: bool = True,
        stop_at_call: bool = False,
    ) -> None:
        name, added = tokenizer.name_or_path, tokenizer.get_added_vocab()
        if not tokenizer.chat_template:
            raise ValueError(f"tokenizer {name!r} lacks a chat template")
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.thinking = thinking
        self._format = read_format(self._render, thinking, tuple(added), name)
        self.calls = self._format.calls
        if stop_at_call and CALL_END not in added:
            raise ValueError(f"stop_at_call: tokenizer {name!r} lacks {CALL_END}")
        self._open_think = "<think>\n" if self._format.no_thought else ""
        turn_end = self._format.turn_end
        self.pad_id = added[turn_end] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._ends = tuple(added[t] for t in (turn_end, *OTHER_ENDS) if t in added)
        self.stop_token_ids = (*self._ends, *([added[CALL_END]] if stop_at_call else []))
        self._escaper = _Escaper(added)
        self._turn_escaper = _Escaper(set(added) - self.calls.markup)
        self._markup = {added[tag] for tag in self.calls.markup if tag in added}
        self._tags = re.compile("|".join(map(re.escape, sorted(self.calls.markup))))
        self._require_parts()

    def prompt_ids(self, task: Task) -> tuple[int, ...]:
        """System message, tools, history and question, up to where the policy writes its turn.

        System messages of the history join the renderer's own at the beginning.
        """
        said = [*task.history, Message("user", task.question)]
        texts = [(m.role, self._escaper_of(m.role).text(m.content)) for m in said]
        system = [self.system_prompt] if self.system_prompt else []
        system += [text for role, text in texts if role == "system"]
        messages: list[ChatMessage] = []
        if system:
            messages.append({"role": "system", "content": "\n\n".join(system)})
        messages += [{"role": role, "content": text} for role, text in texts if role != "system"]
        tools = [self._escaper.json(spec.schema()) for spec in task.tools]
        return self._encode(self._render(messages, True, self.thinking, tools))

    def conversation_ids(
        self, messages: Sequence[ChatMessage], tools: Sequence[Any]
    ) -> tuple[int, ...]:
        """Any conversation of the chat-completions protocol, up to where the policy writes next.

        Unlike the ids of an episode this is what the template makes of the whole history; it may
        leave out thinking of earlier turns. No system message is added.

        Raises what the template raises for messages that it does not render.
        """
        inert = [self._escaper_of(m["role"]).json(_for_template(m)) for m in messages]
        offered = [self._escaper.json(tool) for tool in tools]
        return self._encode(self._render(inert, True, self.thinking, offered))

    def _escaper_of(self, role: str) -> _Escaper:
        """What cuts control tokens in a message; calls and thinking of the policy are live."""
        return self._turn_escaper if role == "assistant" else self._escaper

    def observation_ids(
        self, results: Sequence[ToolResult], turn_ids: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """What follows a sampled turn with calls: all their results, and the next turn's start.

        Where `turn_ids` stopped at a call, it begins with the end of the turn.
        """
        outputs = [self._escaper.text(result.output) for result in results]
        return self._following([{"role": "tool", "content": each} for each in outputs], turn_ids)

    def reply_ids(self, reply: str, turn_ids: Sequence[int] = ()) -> tuple[int, ...]:
        """What follows a sampled turn without calls: the user's message, and the next turn's start.

        Space around the message is left out, as some templates do.
        """
        message = {"role": "user", "content": self._escaper.text(reply.strip())}
        return self._following([message], turn_ids)

    def _following(
        self, messages: Sequence[ChatMessage], turn_ids: Sequence[int]
    ) -> tuple[int, ...]:
        ended = not turn_ids or turn_ids[-1] in self._ends
        rest = "" if ended else self._format.turn_end
        return self._encode(rest + self._format.following(messages))

    def encode_turn(self, text: str) -> tuple[int, ...]:
        """The tokens of a turn that was written instead of sampled, end-of-turn token included.

        Calls and think tags are live; any other control token in `text` is plain text. Where the
        prompt begins a thought, and the text has none, it is ended first.
        """
        written = text.removeprefix(self._open_think)
        start = self._format.no_thought if written == text else ""
        return self._encode(self._turn_escaper.text(start + written) + self._format.turn_end)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a turn, without the token that ended it, with a thought that was begun."""
        ended = bool(token_ids) and token_ids[-1] in self._ends
        return self._open_think + self._decode(token_ids[:-1] if ended else token_ids)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token; that of a character of several tokens stands at its last."""
        stream = DecodeStream(skip_special_tokens=False)
        backend = self.tokenizer.backend_tokenizer
        return [stream.step(backend, token) or "" for token in token_ids]

    def spans(self, text: str, token_ids: Sequence[int]) -> tuple[Span, ...]:
        """What the tokens of a turn that was not cut are for, as the reader of its calls has it.

        Args:
            text: of the tokens, by `decode`.
        """
        places, kind = self.calls.call_spans(text), SpanKind.CALL
        if not places:
            places, kind = [(a, b) for a, b in outside_thinking(text) if a < b], SpanKind.ANSWER
        begun = len(self._open_think)  # has no tokens
        token_at = self._token_at(text[begun:], token_ids)
        spans, end = [], 0
        for first, last in places:
            begin, before = token_at(max(first - begun, 0)), end
            whole = kind is SpanKind.ANSWER and last == len(text)  # with the token that ended it
            end = len(token_ids) if whole else token_at(max(last - begun, 0))
            spans += [Span(SpanKind.REASONING, before, begin), Span(kind, begin, end)]
        spans.append(Span(SpanKind.REASONING, end, len(token_ids)))
        return tuple(s for s in spans if s.start < s.end or s.kind is SpanKind.CALL)

    def _token_at(self, text: str, token_ids: Sequence[int]) -> Callable[[int], int]:
        """For where a tag or the text begins or ends: the first token that stands behind."""
        tags = list(self._tags.finditer(text))
        tokens = [n for n, token in enumerate(token_ids) if token in self._markup]
        if len(tags) != len(tokens):  # some are written in letters
            begins = list(accumulate(map(len, self.pieces(token_ids)), initial=0))
            return lambda place: bisect_left(begins, place)
        last = len(token_ids) - bool(token_ids and token_ids[-1] in self._ends)
        at = {0: 0, len(text): last}
        for tag, token in zip(tags, tokens, strict=True):
            at |= {tag.start(): token, tag.end(): token + 1}
        return at.__getitem__

    def _decode(self, token_ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def _encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text whose cuts keep the pieces apart; control tokens are live."""
        encode = self.tokenizer.encode
        pieces = [encode(piece, add_special_tokens=False) for piece in text.split(_CUT)]
        return tuple(token for piece in pieces for token in piece)

    def _render(
        self,
        messages: Sequence[ChatMessage],
        begin_turn: bool,
        thinking: bool,
        tools: Sequence[Any] = (),
    ) -> str:
        text = self.tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) or None,
            add_generation_prompt=begin_turn,
            enable_thinking=thinking,
            tokenize=False,
        )
        assert isinstance(text, str)
        return text

    def _require_parts(self) -> None:
        """Raise ValueError where a text cut into pieces is not the same: gains or loses a space."""
        messages: list[ChatMessage] = [
            {"role": "user", "content": "probe question"},
            {"role": "assistant", "content": "probe turn"},
            {"role": "tool", "content": "probe result"},
        ]
        conversation = self._render(messages, True, self.thinking)
        pieces = self._encode(self._escaper.text(conversation))
        if self._decode(pieces) != self._decode(self._encode(conversation)):
            name = self.tokenizer.name_or_path
            raise ValueError(f"tokenizer {name!r} cannot encode a conversation in parts")


def _for_template(message: ChatMessage) -> ChatMessage:
    """A message with a text as its content and objects as arguments of its calls.

    The protocol has arguments as JSON, which a template that writes JSON would write as a string.
    """
    kept = {**message, "content": plain_text(message.get("content"))}
    calls = []
    for call in kept.pop("tool_calls", None) or ():
        function = dict(call.get("function") or call)
        with contextlib.suppress(KeyError, TypeError, ValueError):
            function["arguments"] = json.loads(function["arguments"])
        calls.append({"type": "function", "function": function})
    return kept | ({"tool_calls": calls} if calls else {})
