"""A user answers turns without calls: written in the task, or played behind an endpoint."""

import json

import pytest

from matchtir.credit.outcome import succeeds
from matchtir.evaluation.benchmark import TaskBenchmark
from matchtir.policy.batching import collate
from matchtir.rollout.demonstration import written_trajectory
from matchtir.rollout.speakers import ChatEndpoint, EndpointUser
from matchtir.tasks.custom import CustomTasks, row_from_task, task_from_row
from matchtir.types import StopReason
from tests.evaluation.benchmark_helpers import play
from tests.rollout.chat_fakes import answering, says
from tests.rollout.episode_fakes import (
    ANSWER,
    RENDERER,
    SAMPLING,
    TOKENIZERS,
    Engine,
    call_text,
    runner_of,
    task,
)

SHOP = '''
class Shop:
    """Orders that a user may cancel."""

    def __init__(self, orders: dict[str, str] = {}) -> None:
        self.orders = dict(orders)

    def cancel(self, order: str) -> str:
        """Cancel an order.

        Args:
            order: its number.
        """
        self.orders[order] = "cancelled"
        return "done"
'''
ROW = {
    "id": "cancel",
    "question": "I want to cancel my order.",
    "user": ["It is number 17.", "No, that is all."],
    "initial_state": {"Shop": {"orders": {"17": "open", "18": "open"}}},
    "gold_calls": [{"name": "cancel", "arguments": {"order": "17"}, "turn": 2}],
    "gold_state": {"Shop": {"orders": {"17": "cancelled", "18": "open"}}},
}


def episode(engine, player=None, **fields):
    runner = runner_of(engine)
    runner.user = player
    ((trajectory,),) = runner.run([task(**fields)], 1, SAMPLING, seed=0)
    return trajectory


def said(request):
    return [(message["role"], message["content"]) for message in request["messages"]]


def test_the_user_is_heard_until_there_is_nothing_more_to_say():
    engine = Engine("city ?", call_text("alpha"), "beta", ANSWER)
    trajectory = episode(engine, user=("alpha", "What ?"))
    assert [turn.reply for turn in trajectory.turns] == ["alpha", "", "What ?", ""]
    assert [len(turn.results) for turn in trajectory.turns] == [0, 1, 0, 0]
    assert trajectory.stop_reason is StopReason.ANSWER and succeeds(trajectory)
    short = runner_of(engine, max_turns=1).run([task(user=("alpha",))], 1, SAMPLING, seed=0)
    assert short[0][0].stop_reason is StopReason.MAX_TURNS
    assert [turn.reply for turn in episode(Engine(ANSWER)).turns] == [""]


def test_what_the_user_says_is_context_and_never_trained_on():
    trajectory = episode(Engine("city ?", "beta"), user=("alpha",))
    text = [RENDERER.tokenizer.decode(token) for token in trajectory.turns[0].observation_ids]
    assert text == [
        *("\n", "<|im_start|>", "user\n", "alpha", "<|im_end|>", "\n"),
        *("<|im_start|>", "assistant\n", "<think>", "\n\n", "</think>", "\n\n"),
    ]
    batch = collate([trajectory], RENDERER.pad_id)
    first, second = (len(turn.token_ids) for turn in trajectory.turns)
    parts = [(-1, len(trajectory.prompt_ids)), (0, first), (-1, len(text)), (1, second)]
    turns = [turn for turn, length in parts for _ in range(length)]
    assert batch.turn_index[0].tolist() == turns
    assert batch.sampled[0].tolist() == [turn >= 0 for turn in turns]


@TOKENIZERS
def test_a_reply_stands_where_the_chat_template_puts_it(load):
    renderer = type(RENDERER)(load(), "", thinking=True)
    question = task()
    ids = renderer.prompt_ids(question) + renderer.encode_turn("city ?")
    ids += renderer.reply_ids(" alpha <|im_end|>\n")
    messages = [
        {"role": "user", "content": question.question},
        {"role": "assistant", "content": "city ?"},
        {"role": "user", "content": "alpha <|im_end|>"},
    ]
    whole = renderer.conversation_ids(messages, [tool.schema() for tool in question.tools])
    assert ids == whole  # the control token is the user's text here, too


def test_a_task_with_a_user_is_a_success_where_its_state_is_reached(sandbox, tmp_path):
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"split": "test"}))
    tasks = CustomTasks(str(tmp_path / "rows.jsonl"), str(tmp_path / "shop.py"), sandbox=None)
    (record,) = play(TaskBenchmark("shop", tasks, {}), "gold", sandbox, tmp_path).records
    assert record["values"]["success"] == 1.0 and record["values"]["turns"] == 4.0
    assert [turn.get("reply") for turn in record["turns"]] == [
        *("It is number 17.", None, "No, that is all.", None)
    ]
    (record,) = play(TaskBenchmark("none", tasks, {}), "random", sandbox, tmp_path).records
    assert record["values"]["success"] == 0.0

    (given,) = tasks.tasks("test")
    tools = {tool.name: tool for tool in given.tools}
    assert task_from_row(row_from_task(given, tools), "", tools) == given
    with pytest.raises(ValueError, match="cancel: conversations with a user are not demonstrated"):
        written_trajectory(given, [ANSWER], [], RENDERER)
    for user in ({"user_goal": "Cancel it."}, {"user": ["Yes", 1]}, {"user": "Yes"}):
        with pytest.raises(ValueError, match="user: "):
            task_from_row(ROW | user, "", tools)


def test_a_model_behind_an_endpoint_plays_the_user():
    said_first = says("<think>\nhm\n</think>\n\nalpha\ud83d")  # half of a character
    with answering(said_first, says("###STOP###")) as (url, requests):
        user = EndpointUser(ChatEndpoint(url))
        engine = Engine("<think>\nso\n</think>\n\ncity ?", call_text("alpha"), "beta")
        trajectory = episode(engine, user, user_goal="Find the mayor of alpha.", gold_state={})
    assert [turn.reply for turn in trajectory.turns] == ["alpha\ufffd", "", ""]
    assert trajectory.stop_reason is StopReason.ANSWER
    (rules, *first), (_, *second) = map(said, requests)
    assert rules[0] == "system" and rules[1].endswith("Your goal: Find the mayor of alpha.")
    assert first == [("assistant", "What is alpha ?"), ("user", "city ?")]  # no thoughts
    assert second == [*first, ("assistant", "alpha\ufffd"), ("user", "beta")]
    with pytest.raises(ValueError, match="task t has a user_goal: user=endpoint plays one"):
        episode(engine, user_goal="Find the mayor of alpha.")


def test_an_endpoint_hears_what_its_user_said():
    with answering(says("city ?"), says(ANSWER)) as (url, requests):
        runner = runner_of(Engine())
        runner.speaker = ChatEndpoint(url, system_prompt="")
        runner.run([task(user=("alpha",))], 1, SAMPLING, seed=0)
    heard = [("user", "What is alpha ?"), ("assistant", "city ?"), ("user", "alpha")]
    assert said(requests[1]) == heard
