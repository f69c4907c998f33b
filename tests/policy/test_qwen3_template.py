import random

from matchtir.policy.tiny.tokenizer import CHAT_TEMPLATE
from tests.rollout.episode_fakes import qwen3_tokenizer, tool

OURS = CHAT_TEMPLATE.read_text(encoding="utf-8")
CONTENTS = (
    "hi",
    "",
    "\n\nab\n",
    "<think>\nre\n</think>\n\nans",
    "x</think>y",
    "<think>\n\n</think>\n\n",
    "<tool_response>\nx\n</tool_response>",
    "ünï <b>&\"'",
)


def random_messages(rng: random.Random) -> list[dict]:
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
    assert tokenizer.chat_template != OURS
    rng = random.Random(0)
    for _ in range(600):
        tools = [tool(description='é<"').schema()] * rng.randint(0, 2)
        options = {"tools": tools or None, "add_generation_prompt": rng.random() < 0.5}
        options |= rng.choice([{}, {"enable_thinking": True}, {"enable_thinking": False}])
        messages = random_messages(rng)
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        ours = tokenizer.apply_chat_template(
            messages, tokenize=False, chat_template=OURS, **options
        )
        assert ours == theirs
