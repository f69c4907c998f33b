"""Numbers for the states and actions of turns, so that equal ones can be compared."""

from __future__ import annotations

from collections.abc import Hashable

from matchtir.types import ToolCall, Trajectory, Turn


class TurnKeys:
    """Numbers the states and actions of trajectories, equal ones alike.

    The state before a turn is its group and the set of calls made so far, each with its result:
    tool sets that answer the same call alike leave a policy that knows the same with the same
    choices, whatever the order in which it learned it. (GiGPO, 2505.10978, takes the observation
    of an environment with a visible state; a conversation has none, so this is our reading.)
    The action is the turn's set of calls, or, without calls, its whole text.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def __call__(self, trajectory: Trajectory, group: int) -> tuple[list[int], list[int]]:
        """Number of the state and of the action of every turn."""
        known: frozenset[Hashable] = frozenset()
        states, actions = [], []
        for turn in trajectory.turns:
            calls = [_call_key(call) for call in turn.calls]
            states.append(self._number(("state", group, known)))
            actions.append(self._number(("action", _action_key(turn, calls))))
            outputs = (result.output for result in turn.results)
            known = known.union(zip(calls, outputs, strict=False))
        return states, actions

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _call_key(call: ToolCall) -> Hashable:
    # The text as written: cheap, and a different spelling of a call only means fewer comparisons.
    return call.text or (call.name, repr(call.arguments))


def _action_key(turn: Turn, calls: list[Hashable]) -> Hashable:
    return frozenset(calls) if calls else turn.text
