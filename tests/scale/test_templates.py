"""Other families' chat templates: conversations in parts, calls read and written, refusals."""

import pytest

from matchtir.policy.tiny.tokenizer import build_tokenizer
from matchtir.rollout.demonstration import gold_trajectory
from matchtir.rollout.renderer import Renderer
from matchtir.tools.formats import FORMATS, HERMES, LLAMA3, QWEN3_CODER, error_text
from matchtir.types import CallStatus, SubAnswer, ToolCall, ToolResult
from tests.rollout.episode_fakes import WORDS, qwen3_tokenizer, small_tokenizer, task
from tests.scale.templates import LLAMA3_1, QWEN2_5, llama3_1, qwen2_5, qwen3_5, qwen3_6

FAMILIES = pytest.mark.parametrize(
    "load", [qwen2_5, llama3_1, small_tokenizer, qwen3_tokenizer, qwen3_5, qwen3_6]
)
CALL = ToolCall("mayor_of", {"city": 'é"\n', "deep": {"a": [1, None, 2.5]}, "on": True})
FUNCTION_FORMATS = ["qwen3_5", "qwen3_coder"]
OUTPUTS = ("plain", 'with "quotes"\nand <|eot_id|> é', "")


@FAMILIES
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_conversation_in_parts_is_what_the_template_makes_of_it(load, system: str) -> None:
    renderer = Renderer(load(), system, thinking=load is not qwen3_6)
    ids = renderer.prompt_ids(task())
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": task().question})
    for output in ("plain", ' with "quotes"\nand é\n', ""):
        ids += renderer.encode_turn(renderer.calls.write([CALL]))
        ids += renderer.observation_ids([ToolResult(output)])
        function = {"name": CALL.name, "arguments": CALL.arguments}
        call = {"type": "function", "function": function}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "content": output})
    whole = renderer.tokenizer.apply_chat_template(
        messages,
        tools=[spec.schema() for spec in task().tools],
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=renderer.thinking,
    )
    assert renderer.tokenizer.decode(ids) == whole
    if load is not qwen3_5:  # there a thought that the prompt began is ended by the turn
        assert list(ids) == renderer.tokenizer.encode(whole, add_special_tokens=False)


@FAMILIES
def test_what_is_written_is_read_again(load) -> None:
    renderer = Renderer(load())
    text = renderer.calls.write([CALL])
    begun = "<think>\n\n</think>\n\n" if load in (qwen3_5, qwen3_6) else ""
    assert renderer.decode(renderer.encode_turn(text)) == begun + text
    (read,) = renderer.calls.parse(text, {"mayor_of"})
    assert (read.name, read.arguments, read.status) == (CALL.name, CALL.arguments, CallStatus.OK)
    (unknown,) = renderer.calls.parse(text, {"another"})
    assert unknown.status is CallStatus.UNKNOWN_TOOL


@FAMILIES
def test_tool_results_cannot_end_a_turn(load) -> None:
    renderer = Renderer(load())
    control = set(renderer.tokenizer.get_added_vocab().values())

    def count(output: str) -> int:
        ids = renderer.observation_ids([ToolResult(output)])
        return sum(token in control for token in ids)

    assert count("<|eot_id|><|im_end|><|start_header_id|>") == count("x")


def test_formats_and_stop_tokens_are_those_of_the_template() -> None:
    qwen, llama = Renderer(qwen2_5()), Renderer(llama3_1())
    assert qwen.calls is HERMES and llama.calls is LLAMA3
    assert [Renderer(load()).calls.name for load in (qwen3_5, qwen3_6)] == FUNCTION_FORMATS
    names = [each.tokenizer.convert_ids_to_tokens(each.stop_token_ids) for each in (qwen, llama)]
    assert names[0] == ["<|im_end|>", "<|endoftext|>"]
    assert names[1] == ["<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"]
    (result,) = [llama.tokenizer.decode(llama.observation_ids([ToolResult('a "b"')]))]
    assert result.startswith('<|start_header_id|>ipython<|end_header_id|>\n\n"a \\"b\\""<|eot_id|>')


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ('{"name": "f", "parameters": {"a": 1}}', CallStatus.OK, None),
        ('<|python_tag|>{"name": "f", "parameters": {}}', CallStatus.OK, None),
        ('<think>{"name": 1</think>\n {"name": "f", "parameters": {}} ', CallStatus.OK, None),
        ('{"name": "g", "parameters": {}}', CallStatus.UNKNOWN_TOOL, "no tool called"),
        ('{"name": "f", "parameters": {}', CallStatus.INVALID_JSON, "not valid JSON"),
        ('{"name": "f", "parameters": {}} and', CallStatus.INVALID_JSON, "not valid JSON"),
        ('{"parameters": {}}', CallStatus.MISSING_NAME, 'no "name"'),
        (
            '{"name": "f", "arguments": {}}',
            CallStatus.ARGUMENTS_NOT_OBJECT,
            'must stand under "parameters", not under "arguments"',
        ),
        ('{"name": "f", "parameters": "{}"}', CallStatus.ARGUMENTS_NOT_OBJECT, '"parameters" must'),
    ],
)
def test_llama_turns(text: str, status: CallStatus, error: str | None) -> None:
    (call,) = LLAMA3.parse(text, {"f"})
    assert call.status is status
    if error:
        assert error in error_text(call)


@pytest.mark.parametrize(
    "text", ["", "<answer>beta</answer>", 'I call {"name": "f", "parameters": {}}', "[1]"]
)
def test_llama_turns_without_calls(text: str) -> None:
    assert LLAMA3.parse(text, {"f"}) == ()


TYPES = {
    **{"text": {"type": "string"}, "count": {"type": "integer"}, "share": {"type": "number"}},
    **{"on": {"type": "boolean"}, "list": {"type": "array"}, "object": {"type": "object"}},
    **{"either": {"type": ["string", "null"]}, "kind": {"enum": ["1", "2"]}, "any": {}},
    "choice": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
}
TOOLS = {"f": {"type": "object", "properties": TYPES}}


@pytest.mark.parametrize("written", [each for each in FORMATS if each.name in FUNCTION_FORMATS])
@pytest.mark.parametrize(
    "arguments",
    [
        {
            "text": "5",
            "count": 5,
            "share": 0.5,
            "on": False,
            "list": [1, "a"],
            "object": {"a": None},
        },
        {"text": "null", "either": None, "kind": "1", "any": {"a": 1}, "share": 2},
        {"text": "\n lines \n\n", "either": "", "choice": "x", "any": "words", "on": True},
        {"text": '{"a": 1}', "choice": 7, "any": 1.5, "either": "7", "count": -1},
        {"text": "<b> </think> é", "any": "not <one> of them"},
        {},
    ],
)
def test_values_in_tags_have_the_types_of_the_schema(written, arguments) -> None:
    text = written.write([ToolCall("f", arguments), ToolCall("f", {"text": "x"})])
    first, second = written.parse(f"Thus:\n\n{text}", TOOLS)
    assert first == ToolCall("f", arguments, text=first.text)
    assert second.arguments == {"text": "x"}
    assert all(type(first.arguments[name]) is type(arguments[name]) for name in arguments)


@pytest.mark.parametrize(
    ("block", "status", "error"),
    [
        ('{"name": "f", "arguments": {}}', CallStatus.INVALID_JSON, "<function=name>"),
        ("<function=f>", CallStatus.INVALID_JSON, "</function>"),
        ("<function=>\n</function>", CallStatus.MISSING_NAME, "no name"),
        ("<function=g>\n</function>", CallStatus.UNKNOWN_TOOL, 'no tool called "g"'),
        ("<function=f>\ntext=1\n</function>", CallStatus.ARGUMENTS_NOT_OBJECT, "text=1"),
        (
            "<function=f>" + "<parameter=text>\n1\n</parameter>\n" * 2 + "</function>",
            CallStatus.ARGUMENTS_NOT_OBJECT,
            "further <parameter=name> block",
        ),
        ("<function=f>\n<parameter=count>\nmany\n</parameter>\n</function>", CallStatus.OK, ""),
        ("<function=f><parameter=count>5</parameter></function>", CallStatus.OK, ""),
    ],
)
def test_functions_in_tags_that_cannot_be_read(block: str, status: CallStatus, error: str) -> None:
    (call,) = QWEN3_CODER.parse(f"<tool_call>\n{block}\n</tool_call>", TOOLS)
    assert call.status is status
    assert not error or error in error_text(call)


def test_what_cannot_be_told_from_tags_is_not_written() -> None:
    with pytest.raises(ValueError, match="'text' of f holds tags of the format"):
        QWEN3_CODER.write([ToolCall("f", {"text": "a </parameter> b"})])
    many = "<parameter=a>\n1" * 50_000  # none of which ends
    (call,) = QWEN3_CODER.parse(f"<tool_call><function=f>{many}</function></tool_call>", None)
    assert call.status is CallStatus.ARGUMENTS_NOT_OBJECT


def test_a_call_in_a_thought_that_the_prompt_began_is_none() -> None:
    renderer = Renderer(qwen3_6())
    text = renderer.calls.write([ToolCall("mayor_of", {"city": "alpha"})])
    end = renderer.stop_token_ids[0]
    thought = (*renderer.tokenizer.encode(text, add_special_tokens=False), end)
    assert renderer.calls.parse(renderer.decode(thought), None) == ()
    written = renderer.encode_turn(text)
    assert len(renderer.calls.parse(renderer.decode(written), None)) == 1
    assert renderer.encode_turn(renderer.decode(written)) == written


def test_two_calls_do_not_fit_into_a_llama_turn() -> None:
    with pytest.raises(ValueError, match="room for one"):
        LLAMA3.write([CALL, CALL])


def test_gold_calls_of_one_turn_become_several_turns_for_llama() -> None:
    calls = (ToolCall("mayor_of", {"city": "alpha"}), ToolCall("mayor_of", {"city": "beta"}))
    answers = (SubAnswer("mayor_of", "gamma"), SubAnswer("mayor_of", "delta"))
    gold = task(gold_calls=calls, gold_turns=(0, 0), sub_answers=answers)
    for load, turns in ((qwen2_5, 2), (llama3_1, 3)):
        demonstration = gold_trajectory(gold, Renderer(load()))
        assert len(demonstration.turns) == turns
        assert [call.arguments for call in demonstration.calls] == [c.arguments for c in calls]
        assert [result.output for result in demonstration.results] == ["gamma", "delta"]


ONE_TURN = "(rest | selectattr('role', 'equalto', 'assistant') | list | length) == 1"
# Template, what is replaced in it, by what, and the reason of the refusal.
REFUSED = [
    # results cut short, and results that raise
    (QWEN2_5, "message.content + '\n</tool", "message.content[:5] + '\n</tool", "tool messages"),
    (
        *(LLAMA3_1, "{%- if message.role in ('tool', 'ipython') -%}"),
        *("{%- if message.role == 'tool' -%}{{- raise_exception('no tools') -}}",),
        "does not render tools: no tools",
    ),
    # calls left out of the history, and calls in another format
    (QWEN2_5, "{%- elif message.tool_calls -%}", "{%- elif false -%}", "no parser reads"),
    (LLAMA3_1, "'\"parameters\": '", "'\"parametres\": '", "no parser reads"),
    # a thought that is begun only for the turn to be sampled, and results left out once old
    (
        *(QWEN2_5, "{{- '<|im_start|>assistant\n' -}}", "{{- '<|im_start|>assistant\n<think>' -}}"),
        "does not preserve",
    ),
    (
        *(LLAMA3_1, "(message.content | tojson)"),
        *(f"((message.content if {ONE_TURN} else '...') | tojson)", "does not preserve"),
    ),
]


@pytest.mark.parametrize(("template", "old", "new", "reason"), REFUSED)
def test_templates_that_do_not_do_are_refused_with_the_reason(template, old, new, reason) -> None:
    tokenizer = build_tokenizer(WORDS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    assert old in template
    tokenizer.chat_template = template.replace(old, new)
    with pytest.raises(ValueError, match=reason):
        Renderer(tokenizer)


def test_a_template_without_a_token_at_the_end_of_turns_is_refused() -> None:
    tokenizer = build_tokenizer(WORDS)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="a policy has no token that does so"):
        Renderer(tokenizer)
