"""Calls as text: the one reader of what a policy wrote, which decides what is executed and what is
scored, and the writer of calls. `HERMES` is the format of Qwen2.5 and Qwen3: one JSON object with
the keys "name" and "arguments" between ``<tool_call>`` and ``</tool_call>``. `LLAMA3` is that of
Llama 3.1 and its successors, `QWEN3_CODER` that of Qwen3-Coder, Qwen3.5 and later: functions and
parameters in tags. `FORMATS` has them all; docs/extending.md says how to add one. Decisions, each
held by a test:

* The tags of calls and of thinking are tokens of the vocabulary: they structure the text wherever
  they stand, also inside a JSON string.
* Thinking is not execution: blocks inside ``<think>...</think>`` are no calls, and what is said
  there is no answer; but a tag of thinking inside a block that is JSON is part of an argument. A
  ``</think>`` that no ``<think>`` precedes ends a thinking part that the prompt had opened; an open
  ``<think>`` reaches to the end of the text.
* A new ``<tool_call>``, a ``<think>`` or the end of the text before ``</tool_call>`` leaves the
  block unclosed. A lone ``</tool_call>`` is plain text.
* JSON as RFC 8259 has it, one value and nothing after it: NaN and Infinity are refused, as are
  duplicate keys, numbers too large for a float, lone surrogates, and nesting beyond `MAX_DEPTH`.
* "arguments" must be there, and be an object, ``{}`` for a call without any: the prompt says so,
  and the strict readers of this format (vLLM, Qwen-Agent) say so too. Arguments that are a JSON
  string, or stand under "parameters", are refused. Further keys of the call are ignored.
"""

from __future__ import annotations

import json
import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar

from matchtir.types import CallStatus, ResultStatus, ToolCall, ToolResult

# The tools that a call may name: their names, or also the schema of their arguments; None: any.
Tools = Mapping[str, Mapping[str, Any]] | Collection[str] | None

PYTHON_TAG = "<|python_tag|>"  # Llama may write it before a call
MAX_DEPTH = 100  # levels of objects and arrays; far below the recursion limit of what reads them

_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_THINK_TAG = re.compile(r"</?think>")
# Its content, and what closes it, if anything does.
_BLOCK = re.compile(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^>\n]*)>(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(
    r"\s*<parameter=([^>\n]*)>\n?(.*?)\n?</parameter>\s*(?=<parameter=|\Z)", re.DOTALL
)
_INNER_TAG = re.compile(r"</?(?:function|parameter)\b")
# An opening tag may not stand inside: of "<answer>a <answer>b</answer>" the answer is "b".
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
SURROGATE = re.compile(r"[\ud800-\udfff]")  # half of a character, as JSON may have it
_PYTHON_WORDS = {"True": True, "False": False, "None": None}
_KINDS: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}
_KINDS |= {dict: "object", list: "array", type(None): "null"}


class CallFormat(ABC):
    """How the calls of a turn are written and read."""

    name: ClassVar[str]
    several = True  # whether a turn may have more than one call
    markup = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>"})  # control tokens

    def parse(self, text: str, tools: Tools) -> tuple[ToolCall, ...]:
        """Every ``<tool_call>`` block of a turn outside thinking, in order, each with its status.

        A call to a name that is not among `tools` is an unknown tool; None accepts any name.
        A refused call keeps what could be read of it: its name ("" if there is none) and its
        arguments (None if there are none). Never raises for what the text holds.
        """
        return tuple(
            self.parse_block(block[1], tools)
            if block[2]
            else ToolCall("", None, CallStatus.UNCLOSED, block[1])
            for block in _blocks(text)
        )

    def call_spans(self, text: str) -> list[tuple[int, int]]:
        """Where each call begins and ends, its tags included."""
        return [block.span() for block in _blocks(text)]

    def write(self, calls: Sequence[ToolCall]) -> str:
        """A turn of calls, as the chat templates of the format write it: one block per call.

        Raises:
            ValueError, TypeError: arguments that the format has no way to write.
        """
        return "\n".join(f"<tool_call>\n{self.write_block(call)}\n</tool_call>" for call in calls)

    def before_calls(self, text: str) -> str:
        """What a turn with calls says besides them: what stands before the first block."""
        return text.partition("<tool_call>")[0]

    @abstractmethod
    def parse_block(self, block: str, tools: Tools) -> ToolCall:
        """The call in a block."""

    @abstractmethod
    def write_block(self, call: ToolCall) -> str:
        """A call as it stands in its block."""


class HermesCalls(CallFormat):
    """JSON objects between ``<tool_call>`` and ``</tool_call>``, anywhere in the turn."""

    name = "hermes"
    key = "arguments"

    def parse_block(self, block: str, tools: Tools) -> ToolCall:
        """The JSON object that a text is."""
        try:
            value = _load(block)
        except ValueError as error:
            problem = f"it is not valid JSON ({error})"
            return ToolCall("", None, CallStatus.INVALID_JSON, block, problem)
        status, problem = _problem(value, self.key)
        found = value if isinstance(value, dict) else {}
        name = found["name"] if isinstance(found.get("name"), str) else ""
        return _check_tool(ToolCall(name, found.get(self.key), status, block, problem), tools)

    def write_block(self, call: ToolCall) -> str:
        """One JSON object, as chat templates write it.

        Raises ValueError for NaN and infinities, TypeError for values that JSON does not have.
        """
        arguments = json.dumps(call.arguments, ensure_ascii=False, allow_nan=False)
        return f'{{"name": "{call.name}", "{self.key}": {arguments}}}'


class LlamaCalls(HermesCalls):
    """A turn that is one JSON object with "name" and "parameters", from its first character on.

    A turn that begins with ``{`` and is no such object is a call that cannot be read, so that its
    writer hears of it; any other turn is an answer.
    """

    name = "llama3"
    key = "parameters"
    several = False
    markup = frozenset({"<think>", "</think>", PYTHON_TAG})

    def parse(self, text: str, tools: Tools) -> tuple[ToolCall, ...]:
        """The call that the turn is, if it is one."""
        said = without_thinking(text).strip().removeprefix(PYTHON_TAG).strip()
        return (self.parse_block(said, tools),) if said.startswith("{") else ()

    def call_spans(self, text: str) -> list[tuple[int, int]]:
        """Where the call begins and ends: from behind the thinking before it to the end."""
        begins = [start for start, end in outside_thinking(text) if text[start:end].strip()]
        return [(begins[0], len(text))] if self.parse(text, None) else []

    def write(self, calls: Sequence[ToolCall]) -> str:
        """The only call; raises ValueError where there are several."""
        if len(calls) != 1:
            raise ValueError(f"{len(calls)} calls in one turn: the format has room for one")
        return self.write_block(calls[0])

    def before_calls(self, text: str) -> str:
        """Nothing."""
        return ""


class QwenCoderCalls(CallFormat):
    """Functions and their parameters in tags, the values as text; each call in a block.

    The type of a value is the schema's: a string stays the text it is, all else is read as JSON (or
    Python's True, False and None), and left a string where it is none. Where the schema allows
    strings besides other types, or says nothing, JSON of another allowed type is that.
    """

    def __init__(self, name: str, python_words: bool) -> None:
        self.name = name  # type: ignore[misc]
        self.python_words = python_words  # scalars are written as Python has them, not as JSON

    def parse_block(self, block: str, tools: Tools) -> ToolCall:
        """The function in a block."""
        function = _FUNCTION.fullmatch(block)
        if function is None or SURROGATE.search(block):
            problem = "it must be <function=name>, <parameter=name> blocks, </function>"
            return ToolCall("", None, CallStatus.INVALID_JSON, block, problem)
        name, body = function.groups()
        schema = (tools.get(name) if isinstance(tools, Mapping) else None) or {}
        types = schema.get("properties") or {}
        arguments: dict[str, Any] = {}
        at = 0
        while (found := _PARAMETER.match(body, at)) and found[1] not in arguments:
            arguments[found[1]] = _typed(found[2], types.get(found[1]))
            at = found.end()
        if rest := body[at:].strip():
            problem = f"here must stand a further <parameter=name> block: {_printable(rest)}"
            return ToolCall(name, None, CallStatus.ARGUMENTS_NOT_OBJECT, block, problem)
        if not name:
            problem = "its function has no name"
            return ToolCall("", arguments, CallStatus.MISSING_NAME, block, problem)
        return _check_tool(ToolCall(name, arguments, text=block), tools)

    def write_block(self, call: ToolCall) -> str:
        """A function; a value that holds its tags cannot be told from them."""
        parameters = []
        for name, value in call.arguments.items():
            text = value
            if not isinstance(value, str):
                text = json.dumps(value, ensure_ascii=False, allow_nan=False)
                word = self.python_words and not isinstance(value, dict | list)
                text = str(value) if word else text
            if _INNER_TAG.search(text):
                raise ValueError(f"the argument {name!r} of {call.name} holds tags of the format")
            parameters.append(f"<parameter={name}>\n{text}\n</parameter>\n")
        return f"<function={call.name}>\n{''.join(parameters)}</function>"


HERMES, LLAMA3 = HermesCalls(), LlamaCalls()
QWEN3_CODER = QwenCoderCalls("qwen3_coder", python_words=False)
FORMATS: tuple[CallFormat, ...] = (
    *(HERMES, LLAMA3, QWEN3_CODER),
    QwenCoderCalls("qwen3_5", python_words=True),
)


def parse_calls(text: str, tools: Tools) -> tuple[ToolCall, ...]:
    """The calls of a turn in the format `HERMES`."""
    return HERMES.parse(text, tools)


def call_from_api(name: Any, arguments: Any, tools: Tools) -> ToolCall:
    """A call that a server gave apart from the text: its arguments as an object, or as JSON.

    It is read as strictly as one in the text; markup in it is part of its arguments.
    """
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    text = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments or "{}"}}}'
    return HERMES.parse_block(text, tools)


def render_call(name: str, arguments: Any) -> str:
    """A call as Qwen3's chat template writes it.

    Raises ValueError for NaN and infinities, TypeError for values that JSON does not have.
    """
    return HERMES.write([ToolCall(name, arguments)])


def error_text(call: ToolCall) -> str:
    """The observation for a call that was refused; raises ValueError for one that was not."""
    match call.status:
        case CallStatus.UNCLOSED:
            return "Error: the tool call has no closing </tool_call> tag."
        case CallStatus.UNKNOWN_TOOL:
            return f"Error: there is no tool called {_printable(call.name)}."
        case CallStatus.OK:
            raise ValueError(f"the call to {call.name!r} was not refused")
    return f"Error: the tool call cannot be read: {call.problem}."


def refusal(call: ToolCall, tools: Tools) -> ToolResult | None:
    """The result of a call that is not executed, also where none of the tools has its name."""
    call, refused = _check_tool(call, tools), ResultStatus.REJECTED
    return None if call.status is CallStatus.OK else ToolResult(error_text(call), refused)


def extract_answer(text: str) -> str | None:
    """What stands inside the last complete ``<answer>...</answer>`` outside thinking, stripped.

    None where there is none; "" for an empty one.
    """
    answers = [answer for part in outside_thinking(text) for answer in _ANSWER.findall(text, *part)]
    return answers[-1].strip() if answers else None


def without_thinking(text: str) -> str:
    """A turn without its thinking."""
    return "".join(text[start:end] for start, end in outside_thinking(text))


def outside_thinking(text: str) -> list[tuple[int, int]]:
    """Where the parts of a turn outside thinking begin and end."""
    masked = _BLOCK.sub(_without_think_tags, text) if _THINK_TAG.search(text) else text
    before, close, _ = masked.partition("</think>")
    start = len(before + close) if close and "<think>" not in before else 0
    thoughts = [thought.span() for thought in _THINKING.finditer(masked, start)]
    edges = [start, *chain(*thoughts), len(text)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _without_think_tags(block: re.Match[str]) -> str:
    """A block as long as it was, in which, if it is a call, tags of thinking are blanked."""
    whole = block.group()
    if not block[2] or not _THINK_TAG.search(whole):
        return whole
    try:
        if not _FUNCTION.fullmatch(block[1]):
            _load(block[1])
    except ValueError:
        return whole
    return _THINK_TAG.sub(lambda tag: " " * len(tag.group()), whole)


def _blocks(text: str) -> Iterator[re.Match[str]]:
    """The ``<tool_call>`` blocks outside thinking."""
    return chain.from_iterable(_BLOCK.finditer(text, *part) for part in outside_thinking(text))


def _check_tool(call: ToolCall, tools: Tools) -> ToolCall:
    """The call; refused where it is to a tool that is not there."""
    if call.status is CallStatus.OK and tools is not None and call.name not in tools:
        return replace(call, status=CallStatus.UNKNOWN_TOOL)
    return call


def _problem(value: Any, key: str) -> tuple[CallStatus, str]:
    """Status of a block's JSON value, and in words what is wrong with it."""
    if not isinstance(value, dict):
        return CallStatus.MISSING_NAME, "it must be one JSON object with a name and arguments"
    if not isinstance(value.get("name"), str) or not value["name"]:
        return CallStatus.MISSING_NAME, 'it has no "name" that is a non-empty string'
    refused = CallStatus.ARGUMENTS_NOT_OBJECT
    (other,) = {"arguments", "parameters"} - {key}
    if key not in value and other in value:
        return refused, f'its arguments must stand under "{key}", not under "{other}"'
    if key not in value:
        return refused, f'it has no "{key}"; write {{}} for a call without any'
    if isinstance(value[key], str):
        return refused, f'its "{key}" must be a JSON object, not a string that holds one'
    if not isinstance(value[key], dict):
        return refused, f'its "{key}" must be a JSON object'
    return CallStatus.OK, ""


def _load(text: str) -> Any:
    """A block's JSON value; raises ValueError with a message for the policy."""
    if not text.strip():
        raise ValueError("the block is empty")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((double, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {_printable(double)} stands twice in one object")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _check(value: Any, depth: int = 0) -> None:
    """Refuse what Python's reader accepts and others may not."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str) and SURROGATE.search(value):
        raise ValueError("a string holds half of a surrogate pair")
    if isinstance(value, int | float) and abs(value) > sys.float_info.max:
        raise ValueError("a number is too large")
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    for item in inner if isinstance(inner, list) else ():
        _check(item, depth + 1)


def _printable(text: str) -> str:
    """A name out of the policy's text as an error may repeat it: short, and encodable."""
    return json.dumps(text[:100], ensure_ascii=bool(SURROGATE.search(text)))


def _typed(text: str, schema: Any) -> Any:
    """The value that a text means where a schema asks for it."""
    kinds = _kinds(schema)
    if kinds == {"string"}:
        return text
    try:
        value = _PYTHON_WORDS[text] if text in _PYTHON_WORDS else _load(text)
    except ValueError:
        return text
    kind = _KINDS[type(value)]
    allowed = kind in kinds or (kind == "integer" and "number" in kinds)
    return value if kind != "string" and (allowed or "string" not in kinds) else text


def _kinds(schema: Any) -> set[str]:
    """The JSON types that a schema allows; all, where it does not say."""
    said = schema if isinstance(schema, Mapping) else {}
    if "type" in said:
        return {said["type"]} if isinstance(said["type"], str) else set(said["type"])
    if "enum" in said or "const" in said:
        return {_KINDS[type(each)] for each in said.get("enum", [said.get("const")])}
    several = said.get("anyOf") or said.get("oneOf") or ()
    return set().union(*map(_kinds, several)) if several else set(_KINDS.values())
