"""The example served as an OpenEnv environment by the real program, and played by its client."""

import json
import sys
from pathlib import Path

import pytest

from tests.custom.conftest import served

pytest.importorskip("openenv.core", reason="the extra openenv is not installed")

ROOT = Path(__file__).parents[2]
TRIPS = ROOT / "examples" / "trips"


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture(scope="module")
def url():
    command = [sys.executable, str(ROOT / "scripts" / "serve_openenv.py"), "data=custom"]
    command += [f"data.path={TRIPS / 'tasks.jsonl'}", f"data.tools={TRIPS / 'tools.py'}"]
    with served(*command, "port=PORT", cwd=ROOT) as port:
        yield f"http://127.0.0.1:{port}"


def place(fits):
    """The split of the first task whose row fits, its index there, and the row."""
    rows = [json.loads(line) for line in (TRIPS / "tasks.jsonl").read_text().splitlines()]
    row = next(row for row in rows if fits(row))
    return row["split"], [each for each in rows if each["split"] == row["split"]].index(row), row


def test_a_gold_solution_earns_its_reward_over_the_wire(url):
    from openenv.core.generic_client import GenericEnvClient

    split, index, row = place(lambda row: [call["turn"] for call in row["gold_calls"]] == [1, 2])
    with GenericEnvClient(base_url=url).sync() as env:
        result = env.reset(split=split, index=index)
        assert result.observation["messages"][-1]["content"] == row["question"]
        names = [tool["function"]["name"] for tool in result.observation["tools"]]
        assert names == row["tools"]
        for gold in row["gold_calls"]:
            result = env.step({"text": call(gold["name"], **gold["arguments"])})
            assert result.observation["results"][0]["status"] == "ok"
            assert not result.done
        result = env.step({"text": f"<answer>{row['answer']}</answer>"})
    assert result.done
    assert result.reward == pytest.approx(3.0)  # two calls and the answer


def test_sessions_have_a_plan_of_their_own(url):
    from openenv.core.generic_client import GenericEnvClient

    split, index, row = place(lambda row: "Stay" in row["question"])
    (gold,) = row["gold_calls"]
    right, wrong = gold["arguments"], {**gold["arguments"], "nights": 99}
    rewards = []
    with GenericEnvClient(base_url=url).sync() as a, GenericEnvClient(base_url=url).sync() as b:
        for env in (a, b):
            env.reset(split=split, index=index)
        for env, arguments in ((a, wrong), (b, right)):
            env.step({"text": call(gold["name"], **arguments)})
        for env in (a, b):
            rewards.append(env.step({"text": "<answer>done</answer>"}).reward)
    assert rewards[1] == pytest.approx(2.0)
    assert rewards[0] < 1.0
