"""How models of different families write calls: which parser reads a turn, and how one is written.

`HERMES` is the format of Qwen2.5 and Qwen3 (`matchtir.tools.parser`). `LLAMA3` is that of Llama 3.1
and its successors: a turn with a call is one JSON object with the keys "name" and "parameters" and
nothing else, so there is one call in a turn.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Protocol

from matchtir.tools.parser import parse_block, parse_calls, render_call, spoken_text
from matchtir.types import ToolCall

PYTHON_TAG = "<|python_tag|>"  # Llama may write it before a call


class CallFormat(Protocol):
    """Reads and writes the calls of a turn."""

    name: str
    several: bool  # whether a turn may have more than one call
    markup: frozenset[str]  # control tokens that a policy writes inside a turn

    def parse(self, text: str, tool_names: Collection[str] | None) -> tuple[ToolCall, ...]:
        """The calls of a turn, see `parse_calls`."""
        ...

    def write(self, calls: Sequence[ToolCall]) -> str:
        """A turn of calls, as the chat templates of the format write it."""
        ...

    def before_calls(self, text: str) -> str:
        """What a turn with calls says besides them."""
        ...


class HermesCalls:
    """JSON objects between ``<tool_call>`` and ``</tool_call>``, anywhere in the turn."""

    name = "hermes"
    several = True
    markup = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>"})

    def parse(self, text: str, tool_names: Collection[str] | None) -> tuple[ToolCall, ...]:
        """Every block outside thinking."""
        return parse_calls(text, tool_names)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """One block per call."""
        return "\n".join(render_call(call.name, call.arguments) for call in calls)

    def before_calls(self, text: str) -> str:
        """What stands before the first block."""
        return text.partition("<tool_call>")[0]


class LlamaCalls:
    """A turn that is one JSON object, from its first character on.

    A turn that begins with ``{`` and is no such object is a call that cannot be read, so that its
    writer hears of it; any other turn is an answer.
    """

    name = "llama3"
    several = False
    markup = frozenset({"<think>", "</think>", PYTHON_TAG})
    key = "parameters"

    def parse(self, text: str, tool_names: Collection[str] | None) -> tuple[ToolCall, ...]:
        """The call that the turn is, if it is one."""
        spoken = spoken_text(text).strip().removeprefix(PYTHON_TAG).strip()
        if not spoken.startswith("{"):
            return ()
        return (parse_block(spoken, tool_names, self.key),)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """The only call.

        Raises:
            ValueError: there are several.
        """
        if len(calls) != 1:
            raise ValueError(f"{len(calls)} calls in one turn: the format has room for one")
        (call,) = calls
        arguments = json.dumps(call.arguments, ensure_ascii=False, allow_nan=False)
        return f'{{"name": "{call.name}", "parameters": {arguments}}}'

    def before_calls(self, text: str) -> str:
        """Nothing."""
        return ""


HERMES, LLAMA3 = HermesCalls(), LlamaCalls()
