"""The tiny policy's tokenizer: nothing is lost, every word of its worlds is one token."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from matchtir.policy.tiny.tokenizer import (
    FRAMES,
    MARKUP_TOKENS,
    SPECIAL_TOKENS,
    tiny_tokenizer,
    tiny_tokenizer_for,
)
from matchtir.rollout.demonstration import gold_trajectory
from matchtir.rollout.renderer import Renderer
from matchtir.tasks.synthetic import SyntheticTasks, laptop_words
from matchtir.types import Task, ToolCall, ToolSpec
from tests.rollout.episode_fakes import qwen3_tokenizer, tool

TOKENIZER = tiny_tokenizer()
PIECES = st.sampled_from(
    [*FRAMES, *SPECIAL_TOKENS, *MARKUP_TOKENS, *laptop_words(), " ", '"', "\n"]
)


def encode(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


@settings(deadline=None)
@given(
    st.text()
    | st.lists(PIECES | st.text(max_size=3)).map("".join)
    | st.text(alphabet='Oslo a"{}:,.12\n<>/', max_size=40)
)
def test_any_text_decodes_to_itself(text):
    for tokenizer in (TOKENIZER, NAMES):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_words_and_frames_are_one_token_each():
    for word in laptop_words():
        assert (len(encode(word)), len(encode(f" {word}"))) == (1, 1), word
    for piece in (*FRAMES, *SPECIAL_TOKENS, *MARKUP_TOKENS):
        assert len(encode(piece)) == 1, piece


def test_a_word_that_is_not_in_the_vocabulary_falls_apart_into_bytes():
    assert len(encode("zebra")) == len("zebra")
    assert len(encode("Ärger")) == len("Ärger".encode())
    assert len(encode(" amberish")) == len(" amberish")  # a known word inside does not count


def test_laptop_conversations_need_hardly_any_bytes():
    """Quotes and line ends are bytes; all else in a gold conversation is a word or a frame."""
    renderer = Renderer(TOKENIZER, system_prompt="")
    tasks = SyntheticTasks(sizes={"train": 24}).tasks("train")
    used = set()
    for task in tasks:
        trajectory = gold_trajectory(task, renderer)
        assert len(trajectory.prompt_ids) <= 200
        ids = [*trajectory.prompt_ids]
        for turn in trajectory.turns:
            ids += [*turn.token_ids, *turn.observation_ids]
        used |= {TOKENIZER.decode([token]) for token in ids}
    assert {text for text in used if len(text) == 1 and not text.isdigit()} <= {'"', "\n", "a"}


def test_control_tokens_are_qwen3s():
    theirs = qwen3_tokenizer()
    known = theirs.get_added_vocab()
    assert {*SPECIAL_TOKENS, *MARKUP_TOKENS} <= set(known)
    special = {str(token) for token in theirs.added_tokens_decoder.values() if token.special}
    assert set(SPECIAL_TOKENS) <= special
    assert not set(MARKUP_TOKENS) & special
    assert (TOKENIZER.eos_token, TOKENIZER.pad_token) == (theirs.eos_token, theirs.pad_token)


def test_it_loads_again_from_a_folder(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert loaded.chat_template == TOKENIZER.chat_template
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    (task,) = SyntheticTasks(sizes={"train": 1}).tasks("train")
    for text in ("zebra é🙂", " amber anchor", "".join(FRAMES), " ,  a"):
        assert loaded.encode(text, add_special_tokens=False) == encode(text)
        assert loaded.decode(encode(text)) == text
    assert Renderer(loaded).prompt_ids(task) == Renderer(TOKENIZER).prompt_ids(task)


# -- a tokenizer with the words of a task set --------------------------------------------------

FIND = ToolSpec("find_currency", "Currency of a city.", {"type": "object"})
OF_OSLO = ToolCall("find_currency", {"city": "Oslo"})
OSLO = Task("t", "Which currency has Oslo for 12 nights?", (FIND,), (OF_OSLO,), "krone")
NAMES = tiny_tokenizer_for([OSLO])


@pytest.mark.parametrize(
    ("tokenizer", "name", "length"),
    [(TOKENIZER, "amber anchor", 2), (NAMES, "Oslo", 1), (NAMES, "12", 1)],
)
def test_a_name_has_the_same_ids_wherever_it_stands(tokenizer, name, length):
    contexts = [
        f'What are the age of "opal otter", the rank of "{name}" and the rank of "pale pine"?',
        f'<tool_call>\n{{"name": "find_age", "arguments": {{"person": "{name}"}}}}\n</tool_call>',
        f'{{"person": "{name}", "unit": "feet"}}',
        f"<answer>42, {name}, pale pine</answer>",
        *[f"for {name} nights"] * (tokenizer is NAMES),
    ]
    ids = tokenizer.encode(name, add_special_tokens=False)
    assert len(ids) == length
    for text in contexts:
        found = tokenizer.encode(text, add_special_tokens=False)
        assert any(found[i : i + length] == ids for i in range(len(found))), text


# -- the chat template --------------------------------------------------------------------------

CONTENTS = (
    *("hi", "", "\n\nab\n", "<think>\nre\n</think>\n\nans", "x</think>y"),
    *("<think>\n\n</think>\n\n", "<tool_response>\nx\n</tool_response>", "ünï <b>&\"'"),
)


def random_messages(rng):
    """Any order of roles, also those that no conversation has."""
    messages = []
    for role in rng.choices(["system", "user", "assistant", "tool"], k=rng.randint(1, 8)):
        message = {"role": role, "content": rng.choice(CONTENTS)}
        if role == "assistant" and rng.random() < 0.3:
            message["reasoning_content"] = rng.choice([*CONTENTS, None])
        if role == "assistant" and rng.random() < 0.6:
            arguments = rng.choices([{}, {"a": [1, "é<"]}, '{"a": 1}'], k=rng.randint(0, 3))
            calls = [{"name": "f", "arguments": each} for each in arguments]
            message["tool_calls"] = rng.choice([calls, [{"function": call} for call in calls]])
        messages.append(message)
    return messages


def test_template_writes_what_qwen3s_own_writes():
    tokenizer = qwen3_tokenizer()
    assert tokenizer.chat_template != TOKENIZER.chat_template
    rng = random.Random(0)
    for _ in range(600):
        tools = [tool(description='é<"').schema()] * rng.randint(0, 2)
        options = {"tools": tools or None, "add_generation_prompt": rng.random() < 0.5}
        options |= rng.choice([{}, {"enable_thinking": True}, {"enable_thinking": False}])
        messages = random_messages(rng)
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        ours = tokenizer.apply_chat_template(
            messages, tokenize=False, chat_template=TOKENIZER.chat_template, **options
        )
        assert ours == theirs
