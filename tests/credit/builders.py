"""Short ways to write tasks and trajectories."""

from matchtir.types import (
    StopReason,
    SubAnswer,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
)


def call(name="f", **arguments):
    return ToolCall(name, arguments)


def turn(*calls, outputs=None, text=""):
    outputs = outputs or [""] * len(calls)
    results = tuple(ToolResult(output) for output in outputs)
    return Turn((1,), (0.0,), text, tuple(calls), results)


def says(text):
    return turn(text=f"<answer>{text}</answer>")


def task(*gold, answer="blue", **fields):
    return Task("task", "question", (), tuple(gold), answer, **fields)


def attempt(of, *turns, stop=None):
    """An attempt that ends with an answer where its last turn makes no calls."""
    if stop is None:
        stop = StopReason.ANSWER if turns and not turns[-1].calls else StopReason.MAX_TURNS
    return Trajectory(of, (1,), tuple(turns), stop)


def sub_answers(*pairs):
    return tuple(SubAnswer(tool, output) for tool, output in pairs)
