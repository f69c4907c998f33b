from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir.tools.formats import MAX_DEPTH, error_text, extract_answer, parse_calls, render_call
from matchtir.types import CallStatus, ToolCall

OK, NO_OBJECT = CallStatus.OK, CallStatus.ARGUMENTS_NOT_OBJECT
BAD_JSON, NO_NAME = CallStatus.INVALID_JSON, CallStatus.MISSING_NAME
GOOD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def block(content: str) -> str:
    return f"<tool_call>\n{content}\n</tool_call>"


def only(text: str) -> ToolCall:
    (call,) = parse_calls(text, {"add"})
    return call


def nested(depth: int) -> str:
    return block(f'{{"name": "add", "arguments": {{"a": {"[" * depth}1{"]" * depth}}}}}')


def test_calls_come_in_order_with_or_without_text_between():
    text = "So: " + GOOD + GOOD.replace("1", "2") + "\nand\n" + GOOD.replace("1", "3") + " done"
    calls = parse_calls(text, {"add"})
    assert [call.arguments for call in calls] == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert {call.status for call in calls} == {OK}


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        ("", BAD_JSON, "the block is empty"),
        ("  \n ", BAD_JSON, "the block is empty"),
        ('{"name": "add"', BAD_JSON, "not valid JSON"),
        ("{'name': 'add', 'arguments': {}}", BAD_JSON, "double quotes"),
        ('{"name": "add", "arguments": {}} so', BAD_JSON, "Extra data"),
        ('{"name": "add", "arguments": {}}\n' * 2, BAD_JSON, "Extra data"),
        ('```json\n{"name": "add", "arguments": {}}\n```', BAD_JSON, "not valid"),
        ('{"name": "add", "arguments": {"a": NaN}}', BAD_JSON, "NaN"),
        ('{"name": "add", "arguments": {"a": -Infinity}}', BAD_JSON, "-Infinity"),
        ('{"name": "add", "arguments": {"a": 1e999}}', BAD_JSON, "too large"),
        ('{"name": "add", "arguments": {"a": -' + "9" * 309 + "}}", BAD_JSON, "too large"),
        ('{"name": "add", "arguments": {"a": 1, "a": 2}}', BAD_JSON, '"a" stands'),
        ('{"name": "x", "name": "add", "arguments": {}}', BAD_JSON, '"name" stands'),
        ('{"name": "add", "arguments": {"a": "\\ud800"}}', BAD_JSON, "surrogate"),
        ('{"name": "add", "arguments": {"\\udc00": 1}}', BAD_JSON, "surrogate"),
        ('{"name": "add", "arguments": {"a": "\ud800"}}', BAD_JSON, "surrogate"),
        ('{"name": "\\ud800", "arguments": {}}', BAD_JSON, "surrogate"),
        ('{"\\ud800": 1, "\\ud800": 2}', BAD_JSON, "stands twice"),
        ('{"name": "add", "arguments": ' + "9" * 5000 + "}", BAD_JSON, "digits"),
        ('[{"name": "add", "arguments": {}}]', NO_NAME, "one JSON object"),
        ('"add"', NO_NAME, "one JSON object"),
        ("null", NO_NAME, "one JSON object"),
        ('{"arguments": {}}', NO_NAME, 'no "name"'),
        ('{"name": "", "arguments": {}}', NO_NAME, 'no "name"'),
        ('{"name": ["add"], "arguments": {}}', NO_NAME, 'no "name"'),
        ('{"name": "add"}', NO_OBJECT, "write {}"),
        ('{"name": "add", "parameters": {}}', NO_OBJECT, '"parameters"'),
        ('{"name": "add", "arguments": "{}"}', NO_OBJECT, "not a string"),
        ('{"name": "add", "arguments": [1]}', NO_OBJECT, "JSON object"),
        ('{"name": "add", "arguments": null}', NO_OBJECT, "JSON object"),
        ('{"name": "sub", "arguments": {}}', CallStatus.UNKNOWN_TOOL, 'no tool called "sub"'),
        ('{"name": " add", "arguments": {}}', CallStatus.UNKNOWN_TOOL, 'no tool called " add"'),
    ],
)
def test_what_is_refused_and_in_which_words(content, status, words):
    call = only(block(content))
    assert call.status is status
    assert call.text == f"\n{content}\n"
    assert words in error_text(call)
    error_text(call).encode()


def test_a_call_that_was_not_refused_has_no_error_text():
    with pytest.raises(ValueError, match="not refused"):
        error_text(only(GOOD))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # What can be read of a refused call is kept; form comes before the name of the tool.
        ('{"name": "add", "arguments": "{}"}', ToolCall("add", "{}", NO_OBJECT)),
        ('{"name": "sub"}', ToolCall("sub", None, NO_OBJECT)),
        ('{"arguments": {"a": 1}}', ToolCall("", {"a": 1}, CallStatus.MISSING_NAME)),
        # Further keys are ignored.
        ('{"id": 7, "name": "add", "arguments": {}, "parameters": 1}', ToolCall("add", {})),
    ],
)
def test_what_is_read(content, expected):
    assert only(block(content)) == replace(expected, text=f"\n{content}\n")


def test_a_block_that_the_text_ends_is_unclosed():
    call = only('<tool_call>\n{"name": "add", "arguments": {}}')
    assert call == ToolCall("", None, CallStatus.UNCLOSED, '\n{"name": "add", "arguments": {}}')
    assert "closing" in error_text(call)


@pytest.mark.parametrize(
    ("text", "statuses"),
    [
        (f"<think>{GOOD}</think>", []),
        (f"<think>{GOOD}</think>{GOOD}", [OK]),
        (f"{GOOD}<think>{GOOD}</think>{GOOD}", [OK, OK]),
        (f"{GOOD}<think>{GOOD}", [OK]),  # thinking that never ends
        (f"the prompt opened this: {GOOD}</think>\n{GOOD}", [OK]),
        (f"<think><tool_call></think>{GOOD}", [OK]),
        (f"<tool_call>{{<think>{GOOD}</think>", [CallStatus.UNCLOSED]),
        (f"<think>a</think>{GOOD}</think>", [OK]),  # a stray tag is text
        ("", []),
        ("I could write a tool_call > here.", []),
        ("a stray </tool_call> is text", []),
        (f'<tool_call>{{"name": "add"{GOOD}', [CallStatus.UNCLOSED, OK]),
        (f"<tool_call>{GOOD}</tool_call>", [CallStatus.UNCLOSED, OK]),
        (block('{"a": "<tool_call>"}'), [CallStatus.UNCLOSED, CallStatus.INVALID_JSON]),
    ],
)
def test_tags_alone_decide_what_is_a_call_and_thinking_is_none(text, statuses):
    assert [call.status for call in parse_calls(text, {"add"})] == statuses


def test_depth_is_bounded_wherever_the_reader_itself_gives_up():
    assert only(nested(MAX_DEPTH - 2)).status is OK  # the call and its arguments are two levels
    for depth in (MAX_DEPTH - 1, 500, 990, 5_000, 200_000):
        call = only(nested(depth))
        assert call.status is CallStatus.INVALID_JSON
        assert f"deeper than {MAX_DEPTH}" in error_text(call)


strings = st.text(st.characters(codec="utf-8", exclude_characters="<"))  # tags are structure
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | strings
scalars |= st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(strings, inner), max_leaves=8
)


@given(st.dictionaries(strings, values))
def test_a_rendered_call_is_read_back(arguments):
    text = render_call("add", arguments)
    assert only(text) == ToolCall("add", arguments, OK, text[11:-12])


@given(st.text())
def test_no_text_is_too_ugly(text):
    for call in parse_calls(f"<tool_call>{text}</tool_call>", {"add"}):
        assert call.status is not OK
        error_text(call).encode()


def test_render_call_is_plain_unicode_and_refuses_what_the_parser_would():
    call = '{"name": "look", "arguments": {"q": "Zürich 東京", "n": null}}'
    assert render_call("look", {"q": "Zürich 東京", "n": None}) == block(call)
    with pytest.raises(ValueError, match="JSON compliant"):
        render_call("add", {"a": float("nan")})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("no answer", None),
        ("<answer>42</answer>", "42"),
        ("<answer> a\nb </answer> and more", "a\nb"),
        ("<answer></answer>", ""),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>1</answer> or <answer>2", "1"),
        ("<answer>1 <answer>2</answer> 3</answer>", "2"),
        ("</answer>1<answer>", None),
        ("<answer>never closed", None),
        ("<think><answer>1</answer></think> hm", None),
        ("<answer>2</answer><think><answer>1</answer></think>", "2"),
        ("a thought <answer>1</answer></think><answer>2</answer>", "2"),
    ],
)
def test_the_answer_is_in_the_last_complete_pair(text, answer):
    assert extract_answer(text) == answer


def test_hostile_tags_are_read_in_linear_time():
    many = 100_000
    assert extract_answer("<answer>" * many) is None
    assert len(parse_calls("<tool_call>" * many, None)) == many
    assert parse_calls("<think>" * many, None) == ()
    keys = ",".join(f'"{i}": 0' for i in [*range(many), many - 1])
    assert only(block("{" + keys + "}")).status is CallStatus.INVALID_JSON
