from dataclasses import replace

import pytest

from matchtir.policy.tiny.tokenizer import tiny_tokenizer
from matchtir.rollout.demonstration import gold_trajectory, imperfect_trajectories
from matchtir.rollout.engine import SamplingParams, ScriptedEngine, replay
from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.runner import EpisodeRunner
from matchtir.rollout.speakers import TokenSpeaker
from matchtir.tasks.gold import gold_turn_texts
from matchtir.tasks.habits import Habits
from matchtir.tasks.synthetic import SyntheticTasks
from matchtir.tools.formats import LLAMA3
from matchtir.types import StopReason, SubAnswer, ToolCall, ToolResult
from tests.rollout.episode_fakes import call_text, small_tokenizer, task

RENDERER = Renderer(small_tokenizer(), "", thinking=False)


def gold(*cities, **fields):
    calls = tuple(ToolCall("mayor_of", {"city": city}) for city in cities)
    sub_answers = tuple(SubAnswer("mayor_of", f"mayor of {city}") for city in cities)
    return task(gold_calls=calls, sub_answers=sub_answers, **fields)


def test_in_a_format_of_one_call_a_turn_the_user_waits_for_the_last_of_a_gold_turn():
    asked = gold("alpha", "beta", "gamma", gold_turns=(0, 0, 2), user=("more",))
    _, second, talk, *_ = gold_turn_texts(asked, LLAMA3)
    assert talk == "<answer>beta</answer>" and "beta" in second


def test_calls_are_grouped_by_gold_turns_and_their_results_follow_them():
    trajectory = gold_trajectory(gold("alpha", "beta", "gamma", gold_turns=(2, 0, 2)), RENDERER)
    first, second, last = trajectory.turns
    assert first.text == call_text("beta")
    assert second.text == f"{call_text('alpha')}\n{call_text('gamma')}"
    assert last.text == "<answer>beta</answer>"
    outputs = [result.output for result in trajectory.results]
    assert outputs == ["mayor of beta", "mayor of alpha", "mayor of gamma"]
    assert [call.arguments["city"] for call in trajectory.calls] == ["beta", "alpha", "gamma"]
    assert first.observation_ids == RENDERER.observation_ids([ToolResult("mayor of beta")])
    assert first.logprobs == (0.0,) * len(first.token_ids)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"gold_turns": (0,)}, "1 gold turns for 2 gold calls"),
        ({"sub_answers": ()}, "sub_answers"),
        ({"sub_answers": (SubAnswer("other", "x"), SubAnswer("mayor_of", "x"))}, "sub_answers"),
    ],
)
def test_turns_and_outputs_that_do_not_fit_the_calls_are_refused(fields, named):
    with pytest.raises(ValueError, match=f"task t: {named}"):
        gold_trajectory(replace(gold("alpha", "beta"), **fields), RENDERER)


@pytest.mark.parametrize("thinking", [True, False])
def test_demonstration_equals_a_replay_with_the_real_tools(sandbox, thinking):
    """What fine-tuning imitates is, token for token, what an episode with those turns records."""
    tasks = SyntheticTasks().tasks("validation")[:8]
    renderer = Renderer(tiny_tokenizer(), "", thinking)
    engine = ScriptedEngine(renderer, replay({t.task_id: gold_turn_texts(t) for t in tasks}))
    runner = EpisodeRunner(TokenSpeaker(engine, renderer), sandbox, EpisodeLimits())
    groups = runner.run(tasks, 1, SamplingParams(), seed=0)
    for wanted, [replayed] in zip(tasks, groups, strict=True):
        demonstration = gold_trajectory(wanted, renderer)
        assert replayed.stop_reason is StopReason.ANSWER
        timeless = [
            replace(turn, results=tuple(replace(r, seconds=0.0) for r in turn.results))
            for turn in replayed.turns
        ]
        assert demonstration == replace(replayed, turns=tuple(timeless), seconds=0.0)


def test_an_imperfect_demonstration_reads_what_its_tools_say(sandbox):
    tasks = SyntheticTasks().tasks("validation")[:12]
    renderer = Renderer(tiny_tokenizer(), "")
    same, *shown = [
        imperfect_trajectories(tasks, habits, renderer, sandbox, seed="1/2")
        for habits in (Habits(0, 0, 0, 0), Habits(1, 0, 0, 0), Habits(1, 0, 0, 0))
    ]
    for wanted, plain, odd, again in zip(tasks, same, *shown, strict=True):
        gold = gold_trajectory(wanted, renderer)
        assert plain.turns[-1].text == gold.turns[-1].text
        assert [r.output for r in plain.results] == [r.output for r in gold.results]
        outputs = dict(zip(map(repr, gold.calls), (r.output for r in gold.results), strict=True))
        for call, result in zip(odd.calls, odd.results, strict=True):
            assert result.output  # the tool's own words, also where it refuses
            assert result.output == outputs.get(repr(call), result.output)
        if len(wanted.tools) > len({call.name for call in wanted.gold_calls}):
            assert {call.name for call in odd.calls} > {call.name for call in wanted.gold_calls}
        assert [turn.token_ids for turn in odd.turns] == [turn.token_ids for turn in again.turns]
