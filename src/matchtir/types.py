"""The records that everything else passes around: frozen, small, free of behaviour.

Axes used throughout: N trajectories, T turns, m predicted calls, n gold calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class CallStatus(StrEnum):
    """What the parser made of one ``<tool_call>`` block."""

    OK = "ok"
    INVALID_JSON = "invalid_json"
    UNCLOSED = "unclosed"
    MISSING_NAME = "missing_name"
    ARGUMENTS_NOT_OBJECT = "arguments_not_object"
    UNKNOWN_TOOL = "unknown_tool"


class ResultStatus(StrEnum):
    """How the execution of one call ended."""

    OK = "ok"
    REJECTED = "rejected"  # never executed: the parser refused the call
    BAD_ARGUMENTS = "bad_arguments"  # the call does not fit the tool's signature
    EXCEPTION = "exception"  # the tool raised
    TIMEOUT = "timeout"  # the deadline passed; the process was killed
    CRASHED = "crashed"  # the process died by itself
    TRUNCATED = "truncated"  # it ran, its output was cut at the cap
    BROKEN_TOOL = "broken_tool"  # the tool's source does not load


class StopReason(StrEnum):
    """Why an episode ended."""

    ANSWER = "answer"  # a turn without calls
    MAX_TURNS = "max_turns"
    TURN_LENGTH = "turn_length"  # a turn hit its token limit without an end-of-turn token
    RESPONSE_BUDGET = "response_budget"  # no room for another turn
    PROMPT_TOO_LONG = "prompt_too_long"  # never started
    DEADLINE = "deadline"  # its seconds were over


class SpanKind(StrEnum):
    """What a part of a turn is."""

    CALL = "call"  # with its tags; the k-th one is that of the k-th call
    ANSWER = "answer"  # what is said in a turn without calls, outside thinking
    REASONING = "reasoning"  # thinking, and what is said besides calls


@dataclass(frozen=True, slots=True)
class Span:
    """Sampled tokens [start, end) of a turn."""

    kind: SpanKind
    start: int
    end: int


# In states, instead of a class: an external environment (OpenEnv), its `reward` and `solved`.
ENVIRONMENT = "<environment>"


@dataclass(frozen=True, slots=True)
class McpServer:
    """What serves tools in the Model Context Protocol: a program, or somebody's over HTTP."""

    command: tuple[str, ...] = ()  # program and arguments; it speaks on its standard streams
    url: str = ""  # instead: of a server over streamable HTTP
    token: str = ""  # name of the environment variable whose value is its bearer token
    shared: bool = False  # one connection for all episodes: only for tools that keep no state
    network: bool = False  # whether it may use the network
    environment: tuple[str, ...] = ()  # names of the environment variables that it gets
    trusted: bool = False  # whether it runs without isolation


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as offered to the policy, and what runs it: Python source, or a server."""

    name: str
    description: str
    parameters: Mapping[str, Any]  # JSON schema of the arguments object
    source: str = ""  # Python source that defines a function called `name`, or the class `owner`
    owner: str = ""  # the class whose method the tool is; each episode has one object of it
    path: str = ""  # file of the source: where it finds its neighbours; "" for a source alone
    server: McpServer | None = None  # instead of a source
    network: bool = False  # whether its process may use the network
    environment: tuple[str, ...] = ()  # names of the environment variables that its process gets
    timeout_s: float | None = None  # of one call; None: what the sandbox has
    strict: bool = False  # whether arguments must fit the schema; null may stand for none
    stdout: bool = False  # whether what it prints is returned beside its value

    def schema(self) -> dict[str, Any]:
        """The tool as chat templates expect it."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": dict(self.parameters),
            },
        }


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call, made by the policy or written in a gold trace."""

    name: str
    arguments: Any  # an object for every well-formed call
    status: CallStatus = CallStatus.OK
    text: str = ""  # what the policy wrote between the tags
    problem: str = field(default="", compare=False)  # why it cannot be read, for the policy


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came back from one call; `output` is the text that the policy reads."""

    output: str
    status: ResultStatus = ResultStatus.OK
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SubAnswer:
    """The gold output of one tool: a sub-question of FTRL's Solve metrics."""

    tool: str
    output: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Task:
    """A question, the tools offered for it, and its gold solution."""

    task_id: str
    question: str
    tools: tuple[ToolSpec, ...]
    gold_calls: tuple[ToolCall, ...]  # in order
    answer: str
    sub_answers: tuple[SubAnswer, ...] = ()
    scenario: str = ""
    gold_turns: tuple[int, ...] = ()  # turn index of each gold call, where the source knows it
    alternative_gold_calls: tuple[tuple[ToolCall, ...], ...] = ()  # other traces as good as gold
    history: tuple[Message, ...] = ()  # what was said before the question
    initial_state: Mapping[str, Any] = field(default_factory=dict)  # by class: its arguments
    gold_state: Mapping[str, Any] | None = None  # by class: attributes that the episode must reach
    metadata: Mapping[str, Any] = field(default_factory=dict)
    user: tuple[str, ...] = ()  # what the user says to turns without calls, one after the other
    user_goal: str = ""  # what a simulated user is to reach; instead of `user`

    @property
    def has_user(self) -> bool:
        """Whether somebody answers a turn without calls, which then is not the last one."""
        return bool(self.user or self.user_goal)

    @property
    def gold_traces(self) -> tuple[tuple[ToolCall, ...], ...]:
        """The gold calls and their alternatives."""
        return (self.gold_calls, *self.alternative_gold_calls)


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant message and the observation that answered it."""

    token_ids: tuple[int, ...]  # sampled, end-of-turn token included
    logprobs: tuple[float, ...]  # the sampler's own, one per sampled token
    text: str
    calls: tuple[ToolCall, ...] = ()
    results: tuple[ToolResult, ...] = ()
    observation_ids: tuple[int, ...] = ()  # forced tokens that follow; empty after the last turn
    policy_version: int = 0  # of the weights that sampled it
    spans: tuple[Span, ...] = ()  # all sampled tokens, in order; empty where only text is known
    reply: str = ""  # the user's, to a turn without calls that is not the last


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One sampled attempt at a task."""

    task: Task
    prompt_ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    policy_version: int = 0  # of the weights that sampled the first turn
    seconds: float = 0.0  # wall time from the first token to the last result
    final_state: Mapping[str, Any] | None = None  # by class, where the task has a gold state

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """All calls of the trajectory, in order."""
        return tuple(call for turn in self.turns for call in turn.calls)

    @property
    def results(self) -> tuple[ToolResult, ...]:
        """All results of the trajectory, in order of their calls."""
        return tuple(result for turn in self.turns for result in turn.results)

    @property
    def final_text(self) -> str:
        """Text of the last turn, empty where no turn was sampled."""
        return self.turns[-1].text if self.turns else ""
