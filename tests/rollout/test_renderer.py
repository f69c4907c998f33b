import random

import pytest
from tokenizers import AddedToken
from tokenizers.normalizers import Prepend

from matchtir.policy.tiny.tokenizer import build_tokenizer
from matchtir.rollout.renderer import DEFAULT_SYSTEM_PROMPT, Renderer
from matchtir.types import ToolResult
from tests.rollout.episode_fakes import TOKENIZERS, WORDS, call_text, task, tool
from tests.scale.templates import FAMILIES

TEXTS = (
    "", " ", "\n", "alpha", " beta\n", "\n\ngamma  ", "{\"a\": [1, 2.5]}", "12345",
    "naïve Zürich 北京 🏙", "don't\r\nstop", "<b>", "</answer>", "<|im_end", "tool_call>",
    "\t\x00", "e\u0301", "a" * 300,
)  # fmt: skip
CONTENTS = ("", "alpha", "let me see: ", "北京 is", "<answer>beta</answer>", "two\n\nlines ")


def random_conversation(rng, thinking):
    """Messages after the question, and the pieces of the same: turn texts and results."""
    messages, pieces = [], []
    for _ in range(rng.randint(1, 4)):
        reasoning = rng.choice(["so \n then", "北京", "alpha?"]) if thinking else ""
        calls = [
            {"name": "mayor_of", "arguments": {"city": rng.choice(["alpha", 'é\n"', ""])}}
            for _ in range(rng.randint(1, 3))
        ]
        content = rng.choice(CONTENTS)
        message = {"role": "assistant", "content": content, "tool_calls": calls}
        messages.append(message | ({"reasoning_content": reasoning} if thinking else {}))
        blocks = [
            call_text(call["arguments"]["city"].replace('"', '\\"').replace("\n", "\\n"))
            for call in calls
        ]
        text = "\n".join([content, *blocks] if content else blocks)
        results = [ToolResult(rng.choice(TEXTS)) for _ in calls]
        messages += [{"role": "tool", "content": result.output} for result in results]
        pieces.append((f"<think>\n{reasoning}\n</think>\n\n{text}" if thinking else text, results))
    return messages, pieces


def template_ids(renderer, question_task, messages):
    system = [{"role": "system", "content": renderer.system_prompt}]
    question = {"role": "user", "content": question_task.question}
    return renderer.tokenizer.apply_chat_template(
        [*(system if renderer.system_prompt else []), question, *messages],
        tools=[spec.schema() for spec in question_task.tools] or None,
        add_generation_prompt=True,
        enable_thinking=renderer.thinking,
        return_dict=False,
    )


@TOKENIZERS
@pytest.mark.parametrize("thinking", [True, False])
def test_conversation_equals_chat_template_id_for_id(load, thinking):
    rng = random.Random(0)
    systems = ("", "Be brief.", DEFAULT_SYSTEM_PROMPT)
    renderers = [Renderer(load(), system, thinking) for system in systems]
    for _ in range(60):
        renderer = rng.choice(renderers)
        question = task(question=rng.choice(TEXTS), tools=rng.choice([(), (tool(), tool("other"))]))
        messages, pieces = random_conversation(rng, thinking)

        forced = [renderer.prompt_ids(question)]
        sampled = [renderer.encode_turn(text) for text, _ in pieces]
        forced += [renderer.observation_ids(results) for _, results in pieces]
        if not thinking:
            # The template drops the empty think block from turns that have become history.
            empty = tuple(load().encode("<think>\n\n</think>\n\n"))
            assert all(ids[-len(empty) :] == empty for ids in forced)
            forced[:-1] = [ids[: -len(empty)] for ids in forced[:-1]]
        whole = [*forced[0]]
        for turn, observation in zip(sampled, forced[1:], strict=True):
            whole += turn + observation
        assert whole == template_ids(renderer, question, messages)


@TOKENIZERS
def test_a_turn_that_stops_at_its_call_is_ended_by_the_observation(load):
    """Whether the policy wrote the end of its turn or was stopped, the conversation is the same."""
    whole, stopping = Renderer(load(), ""), Renderer(load(), "", stop_at_call=True)
    (end, *_) = whole.stop_token_ids
    assert set(stopping.stop_token_ids) - set(whole.stop_token_ids) == {
        load().convert_tokens_to_ids("</tool_call>")
    }
    turn, results = whole.encode_turn(call_text("alpha")), [ToolResult("beta")]
    stopped = turn[:-1]
    assert turn[-1] == end and stopped[-1] in stopping.stop_token_ids
    assert stopping.decode(stopped) == call_text("alpha")
    assert stopped + stopping.observation_ids(results, stopped) == turn + whole.observation_ids(
        results, turn
    )
    assert stopping.observation_ids(results, turn) == whole.observation_ids(results, turn)


@FAMILIES
def test_control_tokens_in_data_are_plain_text(load):
    tokenizer = load()
    control = tokenizer.get_added_vocab()
    nasty = "".join(control) + "<tool_<tool_call>call><<|im_end|>" + "</think>" * 3
    renderer = Renderer(tokenizer, "")

    def count_control(ids):
        return [token for token in ids if token in control.values()]

    plain = renderer.observation_ids([ToolResult("x"), ToolResult("y")])
    observation = renderer.observation_ids([ToolResult(nasty), ToolResult(nasty)])
    assert count_control(observation) == count_control(plain)
    assert tokenizer.decode(observation).count(nasty) == 2

    harmless = tool("name", "text")
    evil = tool(nasty, nasty)
    evil.parameters["properties"][nasty] = {"enum": [nasty, 1, None], "default": (nasty,)}
    prompt = renderer.prompt_ids(task(question=nasty + "\ud83d", tools=(evil,)))
    assert "\ufffd" in tokenizer.decode(prompt)  # for a lone surrogate, which nothing encodes
    assert count_control(prompt) == count_control(renderer.prompt_ids(task(tools=(harmless,))))
    assert tokenizer.decode(prompt).count(nasty) == 6


ENDLESS = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
SWALLOWS = AddedToken("<|im_end|>", rstrip=True, special=True)  # what follows a turn


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda it: setattr(it, "chat_template", None), "lacks a chat template"),
        (lambda it: setattr(it, "chat_template", ENDLESS), "a policy has no token that does so"),
        (lambda it: it.add_tokens(SWALLOWS, special_tokens=True), "in parts"),
        # It marks where a text begins.
        (lambda it: setattr(it.backend_tokenizer, "normalizer", Prepend("_")), "in parts"),
    ],
)
def test_tokenizers_that_do_not_do_are_refused(spoil, message):
    tokenizer = build_tokenizer(WORDS)
    spoil(tokenizer)
    with pytest.raises(ValueError, match=message):
        Renderer(tokenizer)


def spans_of(renderer, ids):
    """The spans as (kind, text of their tokens)."""
    pieces = renderer.pieces(ids)
    spans = renderer.spans(renderer.decode(ids), ids)
    assert len(pieces) == len(ids)
    assert [0, *(span.end for span in spans)] == [*(span.start for span in spans), len(ids)]
    return [(str(span.kind), "".join(pieces[span.start : span.end])) for span in spans]


END, ALPHA, BETA = "<|im_end|>", call_text("alpha"), call_text("beta")


@TOKENIZERS
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("reasoning", END)]),
        ("<answer>b</answer>", [("answer", "<answer>b</answer>" + END)]),
        ("<think>a</think>b", [("reasoning", "<think>a</think>"), ("answer", "b" + END)]),
        ("a" + ALPHA, [("reasoning", "a"), ("call", ALPHA), ("reasoning", END)]),
        (
            f"<think>{BETA}</think>{ALPHA}\n{ALPHA}",  # twice the same; one only thought
            [
                *[("reasoning", f"<think>{BETA}</think>"), ("call", ALPHA), ("reasoning", "\n")],
                *[("call", ALPHA), ("reasoning", END)],
            ],
        ),
        ("<tool_call>{" + ALPHA, [("call", "<tool_call>{"), ("call", ALPHA), ("reasoning", END)]),
        ("b<tool_call>北😀", [("reasoning", "b"), ("call", "<tool_call>北😀"), ("reasoning", END)]),
    ],
)  # fmt: skip
def test_spans_are_what_the_reader_of_calls_read(load, text, expected):
    renderer = Renderer(load())
    assert spans_of(renderer, renderer.encode_turn(text)) == expected
    # A policy may write the tags in letters: they are read alike.
    spelled = [i for c in text for i in renderer.tokenizer.encode(c, add_special_tokens=False)]
    ids = [*spelled, renderer.encode_turn("")[-1]]
    assert spans_of(renderer, ids) == expected
