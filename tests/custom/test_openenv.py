"""The example served as an OpenEnv environment by the real program, and played by its client."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("openenv.core", reason="the extra openenv is not installed")

ROOT = Path(__file__).parents[2]
TRIPS = ROOT / "examples" / "trips"


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture(scope="module")
def url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "scripts" / "serve_openenv.py"), "data=custom"]
    command += [f"data.path={TRIPS / 'tasks.jsonl'}", f"data.tools={TRIPS / 'tools.py'}"]
    process = subprocess.Popen([*command, f"port={port}"], cwd=ROOT)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the server ended"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def places():
    """The index of each task in its split, by question."""
    rows = [json.loads(line) for line in (TRIPS / "tasks.jsonl").read_text().splitlines()]
    splits = {}
    return {
        row["question"]: (
            row["split"],
            splits.setdefault(row["split"], []).append(0) or len(splits[row["split"]]) - 1,
            row,
        )
        for row in rows
    }


def test_a_gold_solution_earns_its_reward_over_the_wire(url):
    from openenv.core.generic_client import GenericEnvClient

    split, index, row = next(
        place
        for place in places().values()
        if place[2]["scenario"] == "two_calls" and place[2]["gold_calls"][1]["turn"] == 2
    )
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

    split, index, row = next(p for p in places().values() if "Stay" in p[0:3][2]["question"])
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
