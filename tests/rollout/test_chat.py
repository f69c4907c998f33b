"""Episodes against servers of the chat-completions protocol, over real connections on loopback."""

import asyncio
import json

import aiohttp
import pytest
from aiohttp import web

from matchtir.policy.tiny.tokenizer import tiny_tokenizer
from matchtir.rollout.chat_server import ChatServer
from matchtir.rollout.engine import SamplingParams, replay, turn_by_sample
from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.http import EndpointError
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.runner import EpisodeRunner
from matchtir.rollout.speakers import ChatEndpoint, api_url
from matchtir.types import CallStatus, StopReason
from tests.rollout.chat_fakes import answering, says
from tests.rollout.episode_fakes import ANSWER, Engine, FakeSandbox, call_text, task

GREEDY = SamplingParams(temperature=0.0)
LIMITS = EpisodeLimits(max_turns=4)


def play(endpoint, played=None):
    runner = EpisodeRunner(endpoint, FakeSandbox(), LIMITS)
    ((trajectory,),) = runner.run([played or task()], 1, GREEDY, 5)
    return trajectory


def test_an_episode_over_the_protocol(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    answers = (
        says("Let me see.", ("mayor_of", '{"city": "alpha"}'), ("mayor_of", '{"city": "beta"}')),
        says("<answer>beta</answer>", reasoning_content="clear\ud83d"),
    )
    with answering(*answers) as (url, requests):
        endpoint = ChatEndpoint(url, api_key_variable="SOME_KEY", system_prompt="Be brief.")
        trajectory = play(endpoint)
    assert trajectory.stop_reason is StopReason.ANSWER
    assert [(turn.token_ids, turn.observation_ids) for turn in trajectory.turns] == [((), ())] * 2
    assert [call.arguments for call in trajectory.calls] == [{"city": "alpha"}, {"city": "beta"}]
    assert trajectory.final_text == "<think>\nclear\ufffd\n</think>\n\n<answer>beta</answer>"

    first, second = requests
    assert first["model"] == "some-model"
    assert first["headers"]["Authorization"] == "Bearer secret"
    assert [m["role"] for m in first["messages"]] == ["system", "user"]
    assert first["temperature"] == 0.0 and "max_tokens" not in first
    assert first["tools"] == [tool.schema() for tool in task().tools]
    assistant, *results = second["messages"][2:]
    assert assistant["content"] == "Let me see."
    assert [call["id"] for call in assistant["tool_calls"]] == ["id0", "id1"]
    assert [(r["role"], r["tool_call_id"]) for r in results] == [("tool", "id0"), ("tool", "id1")]
    assert [r["content"] for r in results] == [r.output for r in trajectory.results]


def test_calls_left_in_the_text_are_found_and_broken_ones_answered():
    answers = (
        says(call_text("alpha")),
        says(None, ("mayor_of", '{"city": ')),
        says("cut", reason="length"),
    )
    with answering(*answers) as (url, requests):
        endpoint = ChatEndpoint(url, tool_choice="none", max_tokens=99, extra_body={"top_p": 0.5})
        trajectory = play(endpoint)
    assert [call.status for call in trajectory.calls] == [CallStatus.OK, CallStatus.INVALID_JSON]
    assert trajectory.stop_reason is StopReason.TURN_LENGTH
    last = requests[-1]
    assert last["tool_choice"] == "none" and last["max_tokens"] == 99 and last["top_p"] == 0.5
    assert last["messages"][-1]["content"] == "Error: invalid_json"
    assert last["messages"][-1]["tool_call_id"] == "id0"


BUSY = (529, {"error": "busy"})


@pytest.fixture
def impatient(monkeypatch):
    """Waits for nothing before it asks again."""
    monkeypatch.setattr("matchtir.rollout.http._LONGEST_WAIT_S", 0.0)


def test_failures_of_the_network_are_tried_again_and_counted(impatient):
    with answering(BUSY, (429, {}), says(ANSWER)) as (url, _):
        endpoint = ChatEndpoint(url, model="m")
        assert play(endpoint).stop_reason is StopReason.ANSWER
        assert endpoint.client.counts == {"requests": 3, "retries": 2}
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1.* failed 2 times; last: Client"):
        play(ChatEndpoint("http://127.0.0.1:9", model="m", retries=1))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([BUSY, BUSY], "failed 2 times"),
        ([(401, {"error": "no key"})], "status 401.*no key"),
        ([(200, {"choices": []})], "answered {'choices': \\[\\]}"),  # no answer of the protocol
    ],
)
def test_what_does_not_pass_stops_the_evaluation(impatient, answers, words):
    with answering(*answers) as (url, _), pytest.raises(EndpointError, match=words):
        play(ChatEndpoint(url, model="m", retries=1))


def test_a_list_of_models_of_another_protocol_is_no_answer(monkeypatch):
    async def models(request):
        return web.json_response({"models": ["m"]})

    monkeypatch.setattr("tests.rollout.chat_fakes.models", models)
    with answering() as (url, _), pytest.raises(EndpointError, match="answered {'models'"):
        play(ChatEndpoint(url))


def test_a_full_context_stops_only_the_episode():
    full = (400, {"error": {"code": "context_length_exceeded", "message": "too long"}})
    with answering(full) as (url, _):
        endpoint = ChatEndpoint(url, model="m")
        trajectory = play(endpoint)
    assert (trajectory.stop_reason, trajectory.final_text) == (StopReason.TURN_LENGTH, "")
    assert endpoint.client.counts["beyond_context"] == 1


def test_urls_without_a_path_get_the_usual_one():
    assert api_url("http://localhost:8000/") == "http://localhost:8000/v1"
    assert api_url("https://host/api/v2/") == "https://host/api/v2"
    with pytest.raises(ValueError, match="tool_choice must be auto or none"):
        ChatEndpoint("http://localhost", tool_choice="all")


# -- our server --------------------------------------------------------------------------------
def scripted(texts, limits=LIMITS):
    renderer = Renderer(tiny_tokenizer(), system_prompt="")
    engine = Engine(script=turn_by_sample(replay({"t": texts})), renderer=renderer)
    return engine, ChatServer(engine, renderer, limits, GREEDY)


def test_our_server_and_our_client_play_an_episode_together():
    texts = (f"I ask.\n{call_text('alpha')}", "<think>yes</think>\n\n<answer>beta</answer>")
    engine, serving = scripted(texts)
    with serving as server:
        trajectory = play(ChatEndpoint(server.url, system_prompt="Rules."))
    assert [call.arguments for call in trajectory.calls] == [{"city": "alpha"}]
    assert trajectory.stop_reason is StopReason.ANSWER
    assert trajectory.final_text == "<think>\nyes\n</think>\n\n<answer>beta</answer>"
    assert server.counts["requests"] == 2
    # what the engine read the second time is the template's rendering of the conversation
    prompt = engine.renderer.tokenizer.decode(list(engine.requests[1].context))
    assert prompt.startswith("<|im_start|>system\nRules.\n\n# Tools")
    assert f"I ask.\n{call_text('alpha')}<|im_end|>" in prompt
    assert "<tool_response>\n" in prompt and prompt.endswith("<|im_start|>assistant\n")


def post(url, body):
    async def send():
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/chat/completions", json=body) as response,
        ):
            return response.status, json.loads(await response.text())

    return asyncio.run(send())


def test_our_server_refuses_what_it_cannot_serve():
    _, serving = scripted(("hello",), EpisodeLimits(max_prompt_tokens=20))
    user = {"role": "user", "content": "Hi " * 30}
    with serving as server:
        for body, code in (
            ({"messages": [user], "user": "t"}, "context_length_exceeded"),
            ({"prompt": "Hi"}, "invalid_request_error"),
        ):
            status, answer = post(server.url, body)
            assert (status, answer["error"]["code"]) == (400, code)
        status, answer = post(server.url, {"messages": [{**user, "content": "Hi"}], "user": "t"})
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hello"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert server.counts["context_length_exceeded"] == 1


def test_what_the_engine_raises_comes_out_at_the_end():
    _, serving = scripted(())  # asked for a turn that the script does not have
    with pytest.raises(ValueError, match="turn 0 of 0 was asked for"), serving as server:
        status, _ = post(server.url, {"messages": [{"role": "user", "content": "Hi"}], "user": "t"})
        assert status == 500
