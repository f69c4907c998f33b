"""What goes into a tool and what comes out."""

import asyncio
import json
from dataclasses import astuple

import pytest

from matchtir.tools.formats import error_text, parse_calls
from matchtir.tools.sandbox import executed, reports_error
from matchtir.types import ResultStatus, ToolCall, ToolResult
from tests.tools.sandbox_helpers import in_session, run, tool


@pytest.mark.parametrize(
    ("expression", "json_text", "python_text"),
    [
        ("'as it is'", "as it is", "as it is"),
        ("{'a': [1, 2.5, None, True], 'é': '東'}", '{"a": [1, 2.5, null, true], "é": "東"}', None),
        ("42", "42", "42"),
        ("True", "true", "True"),
        ("None", "null", "None"),
        ("{1, }", '"{1}"', "{1}"),
        ("{(1, 2): 3}", "{(1, 2): 3}", "{(1, 2): 3}"),  # no JSON at all
        ("[complex(1, 2)]", '["(1+2j)"]', "[(1+2j)]"),
        ("float('nan')", '"NaN"', "nan"),
        (
            "[float('-inf'), {'a': (float('inf'), 1.5)}]",
            '["-Infinity", {"a": ["Infinity", 1.5]}]',
            None,
        ),
        ("{float('nan'): 1, 2: None}", '{"NaN": 1, "2": null}', None),
        ("''", "", ""),
        ("'😀'", "😀", "😀"),
        (r"'\ud83d\ude00'", "😀", "😀"),  # two halves make a character
        (r"'a\ud800b'", "a\ufffdb", "a\ufffdb"),  # one half is none
    ],
)
def test_return_values_become_text(sandbox, make_sandbox, expression, json_text, python_text):
    source = f"def f(): return {expression}"
    result = run(sandbox, source)
    assert (result.status, result.output) == (ResultStatus.OK, json_text)
    if python_text is not None and python_text != json_text:
        assert run(make_sandbox(output="python"), source).output == python_text


def test_objects_that_json_cannot_hold_become_str(sandbox):
    source = """
        class Thing:
            def __str__(self): return "a thing"
        def f():
            loop = []
            loop.append(loop)
            return [Thing(), loop] if cyclic else Thing()
        cyclic = {cyclic}
    """
    assert run(sandbox, source.format(cyclic=False)).output == '"a thing"'
    assert "[...]" in run(sandbox, source.format(cyclic=True)).output


def test_long_outputs_are_cut_and_marked(make_sandbox):
    sandbox = make_sandbox(max_output_chars=100)
    result = run(sandbox, "def f(n): return 'é' * n", n=100)
    assert (result.status, result.output) == (ResultStatus.OK, "é" * 100)
    result = run(sandbox, "def f(n): return 'é' * n", n=5_000_000)
    assert result.status is ResultStatus.TRUNCATED
    assert result.output == "é" * 100 + "\n[cut here: 100 of 5000000 characters]"
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
        from collections import Counter
        from dataclasses import dataclass

        SCALE = 2

        @dataclass
        class Point:
            x: float
            y: float = 0.0

        def helper(point): return math.hypot(point.x, point.y) * SCALE
        def f(x, y): return {"length": helper(Point(x, y)), "n": Counter("aab")["a"]}

        print(f(3, 4))
        if __name__ == "__main__":
            raise SystemExit("examples do not run")
    """
    assert json.loads(run(sandbox, source, x=3, y=4).output) == {"length": 10.0, "n": 2}


def test_globals_do_not_outlive_a_call(make_sandbox):
    source = """
        seen = []
        def f(x):
            seen.append(x)
            return seen
    """
    sandbox = make_sandbox(workers=1)
    assert [run(sandbox, source, x=x).output for x in (1, 2)] == ["[1]", "[2]"]


def test_tools_of_one_session_have_namespaces_of_their_own(sandbox):
    specs = [tool("def helper(): return 1\ndef f(): return helper()"),
             tool("def helper(): return 2\ndef g(): return helper()", "g")]  # fmt: skip
    results, _ = in_session(sandbox, specs, *((name, {}) for name in "fgf"))
    assert [result.output for result in results] == ["1", "2", "1"]


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
    ("arguments", "words"),
    [
        ({}, "Error: f() missing 1 required positional argument: 'a'."),
        ({"a": 1, "c": 2}, "Error: f() got an unexpected keyword argument 'c'."),
    ],
)
def test_arguments_that_do_not_fit(sandbox, arguments, words):
    result = run(sandbox, "def f(a, b=1): return a", **arguments)
    assert result == ToolResult(words, ResultStatus.BAD_ARGUMENTS, result.seconds)


def test_a_type_error_inside_the_tool_is_an_exception(sandbox):
    result = run(sandbox, "def g(x): pass\ndef f(a): return g()", a=1)
    assert result.status is ResultStatus.EXCEPTION
    assert "TypeError" in result.output


@pytest.mark.parametrize("arguments", [None, [1], "{}", {"a": float("nan")}, {"a": {1, 2}}])
def test_arguments_that_are_no_json_object(sandbox, arguments):
    (result,), _ = in_session(sandbox, [tool("def f(a=0): return a")], ("f", arguments))
    assert result.status is ResultStatus.BAD_ARGUMENTS


def test_arguments_of_any_depth(sandbox):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    result = run(sandbox, "def f(a): return 1", a=deep)
    assert result.status is ResultStatus.BAD_ARGUMENTS
    while deep:  # taken down step by step: freeing it at once may overflow the C stack
        deep = deep.pop()


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
    (result,), _ = in_session(sandbox, [tool("def f(): return 1")], astuple(call))
    assert result == ToolResult(error_text(call), ResultStatus.REJECTED)


def test_a_name_that_the_session_lacks_is_rejected(sandbox):
    (result,), _ = in_session(sandbox, [tool("def f(): return 1")], ("g", {}))
    assert result == ToolResult('Error: there is no tool called "g".', ResultStatus.REJECTED)


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


@pytest.mark.parametrize(
    ("output", "is_error"),
    [
        ('{"error": "no such city"}', True),
        ("Error: no such city", True),
        (" error", True),
        ('{"error": ""}', False),
        ('{"error": null, "value": 1}', False),
        ('["error"]', False),
        ("no error", False),
        ("", False),
    ],
)
def test_a_tool_that_reports_an_error(output, is_error):
    assert reports_error(output) is is_error


def test_calls_that_ran_to_their_end():
    ran = {status for status in ResultStatus if executed(ToolResult("", status))}
    assert ran == {ResultStatus.OK, ResultStatus.TRUNCATED}
