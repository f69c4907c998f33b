"""An episode whose turns are written from outside."""

import asyncio

from matchtir.rollout.episode import Attempt, Episode, EpisodeLimits, Speaker, Utterance
from matchtir.types import StopReason
from tests.rollout.episode_fakes import SAMPLING, FakeSandbox, call_text, task


def hear_all(*texts: str, max_turns: int = 4):
    """What each turn ended with, the results of each, and the episode."""

    async def talk():
        attempt, sandbox = Attempt(task(), (), SAMPLING, 0, 0, 0), FakeSandbox()
        episode = Episode(attempt, Speaker(), sandbox, EpisodeLimits(max_turns))
        reasons = [await episode.hear(Utterance(text, stopped=True)) for text in texts]
        trajectory = await episode.end(reasons[-1])
        await episode.close()
        assert all(session.is_closed for session in sandbox.sessions)
        return reasons, trajectory

    return asyncio.run(talk())


def test_turns_are_answered_by_their_results_and_the_last_ends_the_episode():
    two = call_text("alpha") + call_text("beta")
    reasons, trajectory = hear_all(two, call_text("gamma"), "<answer>beta</answer>")
    assert reasons == [None, None, StopReason.ANSWER]
    assert [[result.output for result in turn.results] for turn in trajectory.turns] == [
        ["mayor of alpha", "mayor of beta"],
        ["mayor of gamma"],
        [],
    ]
    assert trajectory.stop_reason is StopReason.ANSWER
    assert trajectory.final_text == "<answer>beta</answer>"


def test_the_limit_of_turns_ends_the_episode():
    reasons, trajectory = hear_all(call_text("alpha"), max_turns=1)
    assert reasons == [trajectory.stop_reason] == [StopReason.MAX_TURNS]
