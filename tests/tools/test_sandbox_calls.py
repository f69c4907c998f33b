"""What goes into a tool and what comes out."""

import asyncio
import json
from dataclasses import astuple
from functools import reduce

import pytest

from matchtir.tools.formats import error_text, parse_calls
from matchtir.tools.sandbox import ProcessPoolSandbox, executed, reports_error
from matchtir.types import ResultStatus, ToolCall, ToolResult
from tests.tools.sandbox_helpers import in_session, run, tool


@pytest.mark.parametrize(
    ("expression", "json_text", "python_text"),
    [
        ("'as it is'", "as it is", "as it is"),
        ("{'a': [1, 2.5, None, True], 'é': '東'}", '{"a": [1, 2.5, null, true], "é": "東"}', None),
        ("True", "true", "True"),
        ("None", "null", "None"),
        ("{1, }", '"{1}"', "{1}"),
        ("{(1, 2): 3}", "{(1, 2): 3}", "{(1, 2): 3}"),  # no JSON at all
        ("[complex(1, 2)]", '["(1+2j)"]', "[(1+2j)]"),
        ("float('nan')", '"NaN"', "nan"),
        ("{float('nan'): (float('inf'), 1.5)}", '{"NaN": ["Infinity", 1.5]}', None),
        ("''", "", ""),
        (r"'\ud83d\ude00'", "😀", "😀"),  # two halves make a character
        (r"'a\ud800b'", "a\ufffdb", "a\ufffdb"),  # one half is none
        ("(x := [range(3)]).append(x) or x", "[range(0, 3), [...]]", None),  # no end
    ],
)
def test_return_values_become_text(sandbox, python_sandbox, expression, json_text, python_text):
    source = f"def f(): return {expression}"
    result = run(sandbox, source)
    assert (result.status, result.output) == (ResultStatus.OK, json_text)
    if python_text is not None:
        assert run(python_sandbox, source).output == python_text


@pytest.fixture(scope="module")
def python_sandbox():
    pool = ProcessPoolSandbox(workers=1, output="python")
    yield pool
    pool.shutdown()


def test_long_outputs_are_cut_and_marked(make_sandbox):
    sandbox = make_sandbox(max_output_chars=100)
    result = run(sandbox, "def f(n): return 'é' * n", n=100)
    assert (result.status, result.output) == (ResultStatus.OK, "é" * 100)
    result = run(sandbox, "def f(n): return 'é' * n", n=101)
    assert result.status is ResultStatus.TRUNCATED
    assert result.output == "é" * 100 + "\n[cut here: 100 of 101 characters]"
    result = run(sandbox, "def f(): raise ValueError('x' * 1000)")
    assert result.status is ResultStatus.EXCEPTION  # cut too, but it stays what it was
    assert len(result.output) < 200


def test_arguments_arrive_as_they_were(sandbox):
    arguments = {"a": "Zürich 東京 😀 \u2028 \x00 \"'", "b": [1, 2.5, None, {"": True}], "c": 2**70}
    result = run(sandbox, "def f(**given): return given", **arguments)
    assert json.loads(result.output) == arguments
    result = run(sandbox, "def f(a): return ascii(a)", a="\ud800")
    assert result.output == r"'\ud800'"


def test_sources_may_import_and_have_helpers_classes_and_examples(sandbox):
    source = """
        from __future__ import annotations
        import math
        from dataclasses import dataclass
        SCALE = 2
        @dataclass
        class Point:
            x: float
            y: float = 0.0
        def helper(point): return math.hypot(point.x, point.y) * SCALE
        def f(x, y): return helper(Point(x, y))
        print(f(3, 4))
        if __name__ == "__main__":
            raise SystemExit("examples do not run")
    """
    assert run(sandbox, source, x=3, y=4).output == "10.0"


def test_neither_globals_outlive_a_call_nor_do_tools_share_them(make_sandbox):
    source = "seen = []\ndef helper(): return {0}\ndef {1}(): seen.append(helper()); return seen"
    specs = [tool(source.format(number, name), name) for number, name in enumerate("fg")]
    results, _ = in_session(make_sandbox(workers=1), specs, *((name, {}) for name in "fgf"))
    assert [result.output for result in results] == ["[0]", "[1]", "[0]"]


def test_string_hashes_are_the_same_in_every_process(make_sandbox):
    source = "def f(): return str({'a', 'b', 'c', 'd', 'e'})"
    assert len({run(make_sandbox(), source).output for _ in range(3)}) == 1


@pytest.mark.parametrize(
    "body",
    [
        "print('spam' * 100_000)",
        "os.write(1, b'spam' * 1000); os.write(2, b'spam')",
        "os.system('echo spam; echo spam >&2')",
        "sys.stdout.close()",
        "sys.stdout = sys.stderr = None",
        "logging.warning('spam')",
        "warnings.warn('spam')",
    ],
)
def test_side_effects_disturb_neither_this_result_nor_the_next(make_sandbox, body):
    sandbox = make_sandbox(workers=1)
    imports = "import logging, os, sys, warnings"
    source = f"{imports}\ndef f():\n    {body}\n    return 'done'"
    tools = [tool(source), tool("def g():\n    print('x')\n    return 1", "g")]
    results, _ = in_session(sandbox, tools, *[("f", {}), ("g", {})] * 2)
    assert [result.output for result in results] == ["done", "1"] * 2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(:", "SyntaxError"),
        ("\x00", "null bytes"),
        ("def g(): pass", "defines no function f"),
        ("", "defines no function f"),
        ("f = 3", "defines no function f"),
        ("import no_such_module_here\ndef f(): pass", "No module named 'no_such_module_here'"),
        ("1/0\ndef f(): pass", "ZeroDivisionError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("(" * 10_000, "too many nested parentheses"),
    ],
)
def test_a_broken_source_is_named(sandbox, source, words):
    result = run(sandbox, source)
    assert result.status is ResultStatus.BROKEN_TOOL
    assert result.output.startswith("Error: the tool f is broken: ")
    assert words in result.output


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        ({}, "f() missing 1 required positional argument: 'a'.", ResultStatus.BAD_ARGUMENTS),
        ({"a": 1, "c": 2}, "f() got an unexpected keyword", ResultStatus.BAD_ARGUMENTS),
        ({"a": 1}, "f raised TypeError: g() missing", ResultStatus.EXCEPTION),  # inside the tool
    ],
)
def test_arguments_that_do_not_fit(sandbox, arguments, words, status):
    result = run(sandbox, "def g(x): pass\ndef f(a, b=1): return g()", **arguments)
    assert result.status is status and result.output.startswith(f"Error: {words}")


DEEP = {"a": reduce(lambda inner, _: [inner], range(10_000), [])}


@pytest.mark.parametrize(
    "arguments",
    [None, [1], "{}", {"a": float("nan")}, {"a": {1, 2}}, pytest.param(DEEP, id="deep")],
)
def test_arguments_that_are_no_json_object(sandbox, arguments):
    (result,), _ = in_session(sandbox, [tool("def f(a=0): return a")], ("f", arguments))
    assert result.status is ResultStatus.BAD_ARGUMENTS


def test_a_megabyte_passes_where_it_is_allowed(make_sandbox):
    sandbox = make_sandbox(max_argument_chars=2_000_000, max_output_chars=2_000_000)
    assert run(sandbox, "def f(a): return a", a="é" * 1_000_000).output == "é" * 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{</tool_call>",
        "<tool_call>{}",
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
    ],
)
def test_refused_calls_get_the_words_of_the_parser(sandbox, text):
    (call,) = parse_calls(text, {"f"})
    unread, *_ = parse_calls(text, None)  # a name that only the session lacks
    results, _ = in_session(sandbox, [tool("def f(): return 1")], astuple(call), astuple(unread))
    assert set(results) == {ToolResult(error_text(call), ResultStatus.REJECTED)}


def test_two_tools_of_one_name_are_refused(sandbox):
    with pytest.raises(ValueError, match=r"two tools .* called 'f'"):
        asyncio.run(sandbox.open([tool(""), tool("", "g"), tool("")]))


def test_a_closed_session_takes_no_calls(sandbox):
    async def late():
        session = await sandbox.open([tool("def f(): return 1")])
        await session.close()
        await session.close()
        await session.call(ToolCall("f", {}))

    with pytest.raises(RuntimeError, match="session is closed"):
        asyncio.run(late())


def test_a_tool_that_reports_an_error():
    errors = ['{"error": "no such city"}', "Error: no such city", " error"]
    others = ['{"error": ""}', '{"error": null, "value": 1}', '["error"]', "no error", ""]
    others.append("[" * 8_000)  # deeper than Python reads
    assert [text for text in [*errors, *others] if reports_error(text)] == errors


def test_calls_that_ran_to_their_end():
    ran = {status for status in ResultStatus if executed(ToolResult("", status))}
    assert ran == {ResultStatus.OK, ResultStatus.TRUNCATED}
