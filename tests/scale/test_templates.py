"""Other families' chat templates: conversations in parts, calls read and written, refusals."""

import pytest

from matchtir.policy.tiny.tokenizer import build_tokenizer
from matchtir.rollout.demonstration import gold_trajectory
from matchtir.rollout.renderer import Renderer
from matchtir.tools.formats import FORMATS, HERMES, LLAMA3, QWEN3_CODER, error_text
from matchtir.types import CallStatus, ToolCall, ToolResult
from tests.rollout.episode_fakes import WORDS, task
from tests.rollout.test_demonstration import gold
from tests.rollout.test_renderer import template_ids
from tests.scale.templates import FAMILIES, LLAMA3_1, QWEN2_5, llama3_1, qwen2_5, qwen3_5, qwen3_6

CALL = ToolCall("mayor_of", {"city": 'é"\n', "deep": {"a": [1, None, 2.5]}, "on": True})
FUNCTION_FORMATS = ["qwen3_5", "qwen3_coder"]
OK, NO_OBJECT, UNKNOWN = CallStatus.OK, CallStatus.ARGUMENTS_NOT_OBJECT, CallStatus.UNKNOWN_TOOL
BAD_JSON, NO_NAME = CallStatus.INVALID_JSON, CallStatus.MISSING_NAME


@FAMILIES
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_conversation_in_parts_is_what_the_template_makes_of_it(load, system):
    renderer = Renderer(load(), system, thinking=load is not qwen3_6)
    ids = renderer.prompt_ids(task())
    messages = []
    for output in ("plain", ' with "quotes"\nand é\n', ""):
        ids += renderer.encode_turn(renderer.calls.write([CALL]))
        ids += renderer.observation_ids([ToolResult(output)])
        function = {"name": CALL.name, "arguments": CALL.arguments}
        call = {"type": "function", "function": function}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "content": output})
    whole = template_ids(renderer, task(), messages)
    assert renderer.tokenizer.decode(ids) == renderer.tokenizer.decode(whole)
    if load is not qwen3_5:  # there a thought that the prompt began is ended by the turn
        assert list(ids) == whole


@FAMILIES
def test_what_is_written_survives_the_round_trip_and_is_read_again(load):
    renderer = Renderer(load())
    text = renderer.calls.write([CALL])
    for written in (text, "", "é alpha", "<think>\n\n</think>\n\nyes "):
        is_begun = load in (qwen3_5, qwen3_6) and "<think>" not in written
        ids = renderer.encode_turn(written)
        for end in (ids[-1:], (), renderer.stop_token_ids[1:2]):  # also cut before its end
            found = renderer.decode((*ids[:-1], *end))
            assert found == ("<think>\n\n</think>\n\n" if is_begun else "") + written
    (read,) = renderer.calls.parse(text, {"mayor_of"})
    assert (read.name, read.arguments, read.status) == (CALL.name, CALL.arguments, CallStatus.OK)
    (unknown,) = renderer.calls.parse(text, {"another"})
    assert unknown.status is CallStatus.UNKNOWN_TOOL


def test_formats_and_stop_tokens_are_those_of_the_template():
    qwen, llama = Renderer(qwen2_5()), Renderer(llama3_1())
    assert qwen.calls is HERMES and llama.calls is LLAMA3
    assert [Renderer(load()).calls.name for load in (qwen3_5, qwen3_6)] == FUNCTION_FORMATS
    names = [each.tokenizer.convert_ids_to_tokens(each.stop_token_ids) for each in (qwen, llama)]
    assert names[0] == ["<|im_end|>", "<|endoftext|>"]
    assert names[1] == ["<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"]
    (result,) = [llama.tokenizer.decode(llama.observation_ids([ToolResult('a "b"')]))]
    assert result.startswith('<|start_header_id|>ipython<|end_header_id|>\n\n"a \\"b\\""<|eot_id|>')


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
        {"text": "5", "count": 5, "share": 0.5, "on": False},
        {"list": [1, "a"], "object": {"a": None}},
        {"text": "null", "either": None, "kind": "1", "any": {"a": 1}, "share": 2},
        {"text": "\n lines \n\n", "either": "", "choice": "x", "any": "words", "on": True},
        {"text": '{"a": 1}', "choice": 7, "any": 1.5, "either": "7", "count": -1},
        {"text": "<b> </think> é", "any": "not <one> of them"},
        {},
    ],
)
def test_values_in_tags_have_the_types_of_the_schema(written, arguments):
    text = written.write([ToolCall("f", arguments), ToolCall("f", {"text": "x"})])
    first, second = written.parse(f"Thus:\n\n{text}", TOOLS)
    assert first == ToolCall("f", arguments, text=first.text)
    assert second.arguments == {"text": "x"}
    assert all(type(first.arguments[name]) is type(arguments[name]) for name in arguments)


def in_tags(functions):
    return f"<tool_call>\n{functions}\n</tool_call>"


TWICE = "<function=f>" + "<parameter=text>\n1\n</parameter>\n" * 2 + "</function>"
WORDS_FOR_A_COUNT = "<function=f>\n<parameter=count>\nmany\n</parameter>\n</function>"


@pytest.mark.parametrize(
    ("written", "text", "status", "error"),
    [
        (LLAMA3, '{"name": "f", "parameters": {"a": 1}}', OK, ""),
        (LLAMA3, '<|python_tag|>{"name": "f", "parameters": {}}', OK, ""),
        (LLAMA3, '<think>{"name": 1</think>\n {"name": "f", "parameters": {}} ', OK, ""),
        (LLAMA3, '{"name": "g", "parameters": {}}', UNKNOWN, "no tool called"),
        (LLAMA3, '{"name": "f", "parameters": {}', BAD_JSON, "not valid JSON"),
        (LLAMA3, '{"name": "f", "parameters": {}} and', BAD_JSON, "not valid JSON"),
        (LLAMA3, '{"parameters": {}}', NO_NAME, 'no "name"'),
        (LLAMA3, '{"name": "f", "arguments": {}}', NO_OBJECT, 'not under "arguments"'),
        (LLAMA3, '{"name": "f", "parameters": "{}"}', NO_OBJECT, '"parameters" must'),
        (QWEN3_CODER, in_tags('{"name": "f", "arguments": {}}'), BAD_JSON, "<function=name>"),
        (QWEN3_CODER, in_tags("<function=f>"), BAD_JSON, "</function>"),
        (QWEN3_CODER, in_tags("<function=>\n</function>"), NO_NAME, "no name"),
        (QWEN3_CODER, in_tags("<function=g>\n</function>"), UNKNOWN, 'no tool called "g"'),
        (QWEN3_CODER, in_tags("<function=f>\ntext=1\n</function>"), NO_OBJECT, "text=1"),
        (QWEN3_CODER, in_tags(TWICE), NO_OBJECT, "further <parameter=name> block"),
        (QWEN3_CODER, in_tags(WORDS_FOR_A_COUNT), OK, ""),
        (QWEN3_CODER, in_tags("<function=f><parameter=count>5</parameter></function>"), OK, ""),
    ],
)
def test_what_is_read_and_what_is_refused_in_which_words(written, text, status, error):
    (call,) = written.parse(text, TOOLS)
    assert call.status is status
    assert not error or error in error_text(call)


@pytest.mark.parametrize(
    "text", ["", "<answer>beta</answer>", 'I call {"name": "f", "parameters": {}}', "[1]"]
)
def test_llama_turns_without_calls(text):
    assert LLAMA3.parse(text, {"f"}) == ()


def test_what_a_format_has_no_room_for_is_not_written():
    with pytest.raises(ValueError, match="room for one"):
        LLAMA3.write([CALL, CALL])
    with pytest.raises(ValueError, match="'text' of f holds tags of the format"):
        QWEN3_CODER.write([ToolCall("f", {"text": "a </parameter> b"})])


def test_tags_that_none_ends_are_read_in_linear_time():
    many = "<parameter=a>\n1" * 50_000  # none of which ends
    (call,) = QWEN3_CODER.parse(f"<tool_call><function=f>{many}</function></tool_call>", None)
    assert call.status is CallStatus.ARGUMENTS_NOT_OBJECT


def test_a_call_in_a_thought_that_the_prompt_began_is_none():
    renderer = Renderer(qwen3_6())
    text = renderer.calls.write([ToolCall("mayor_of", {"city": "alpha"})])
    end = renderer.stop_token_ids[0]
    thought = (*renderer.tokenizer.encode(text, add_special_tokens=False), end)
    assert renderer.calls.parse(renderer.decode(thought), None) == ()
    written = renderer.encode_turn(text)
    assert len(renderer.calls.parse(renderer.decode(written), None)) == 1
    assert renderer.encode_turn(renderer.decode(written)) == written


def test_gold_calls_of_one_turn_become_several_turns_for_llama():
    for load, turns in ((qwen2_5, 2), (llama3_1, 3)):
        demonstration = gold_trajectory(gold("alpha", "beta", gold_turns=(0, 0)), Renderer(load()))
        assert len(demonstration.turns) == turns
        assert [call.arguments["city"] for call in demonstration.calls] == ["alpha", "beta"]
        outputs = [result.output for result in demonstration.results]
        assert outputs == ["mayor of alpha", "mayor of beta"]


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
def test_templates_that_do_not_do_are_refused_with_the_reason(template, old, new, reason):
    tokenizer = build_tokenizer(WORDS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    assert old in template
    tokenizer.chat_template = template.replace(old, new)
    with pytest.raises(ValueError, match=reason):
        Renderer(tokenizer)
