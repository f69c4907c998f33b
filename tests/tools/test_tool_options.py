"""What a tool may have for itself: its time, a strict schema, what it prints, a coroutine."""

import json
from dataclasses import replace

import pytest

from matchtir.tasks.tool_sources import ToolSourceError, read_tools
from matchtir.types import ResultStatus
from tests.tools.sandbox_helpers import in_session

TOOLS = '''
import asyncio
import time

async def later(seconds: float) -> str:
    """Waits.

    Args:
        seconds: how long
    """
    await asyncio.sleep(seconds)
    return "now"

def compute(code: str) -> int:
    """Runs code.

    Args:
        code: the code
    """
    exec(code, {})
    return 7

class Box:
    def put(self, item: str, count: int = 1) -> str:
        """Puts.

        Args:
            item: the item
            count: how many
        """
        return item * count
'''


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "tools.py"
    path.write_text(TOOLS)
    return str(path)


def results(sandbox, source, *calls, **options):
    return in_session(sandbox, read_tools({"module": source, **options}), *calls)[0]


def test_a_tool_has_a_time_of_its_own(make_sandbox, source):
    calls = [("later", {"seconds": 1.0})]
    (short,) = results(make_sandbox(), source, *calls, timeout_s=0.2)
    (long,) = results(make_sandbox(timeout_s=0.2), source, *calls, timeout_s=60)
    assert (short.status, long.status) == (ResultStatus.TIMEOUT, ResultStatus.OK)
    assert long.output == "now"  # of a coroutine function
    with pytest.raises(ToolSourceError, match="timeout_s"):
        read_tools({"module": source, "timeout_s": 0})


def test_what_a_tool_prints_is_returned_beside_its_value(make_sandbox, source):
    sandbox = make_sandbox(max_output_chars=200)
    calls = [
        ("compute", {"code": code}) for code in ("print('hé')", "print('x' * 999)", "print(1)/0")
    ]
    said, long, failed = results(sandbox, source, *calls, stdout=True)
    assert json.loads(said.output) == {"result": 7, "stdout": "hé\n"}
    assert json.loads(long.output)["stdout"].startswith("x" * 100 + "\n[cut here: 100 of 1000")
    assert failed.status is ResultStatus.EXCEPTION and failed.output.endswith("\n1\n")
    (quiet,) = results(sandbox, source, calls[0])
    assert quiet.output == "7"


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ({"item": "ab", "count": 2}, "abab"),
        ({"item": "ab", "count": None}, "ab"),
        ({"item": "ab", "count": "2"}, "Error: count: '2' is not of type 'integer'."),
        ({"item": None}, "Error: item: None is not of type 'string'."),
        ({}, "Error: 'item' is a required property."),
    ],
)
def test_a_strict_tool_gets_what_fits_its_schema(sandbox, source, arguments, output):
    (result,) = results(sandbox, source, ("put", arguments), strict=True)
    assert result.output == output
    assert (result.status is ResultStatus.BAD_ARGUMENTS) == output.startswith("Error")


def test_schemas_may_use_all_that_json_schema_has(sandbox, source):
    (tool,) = read_tools({"module": f"{source}:compute", "strict": True})
    text = {"anyOf": [{"const": "1"}, {"allOf": [{"type": "string"}, {"minLength": 3}]}]}
    schema = {"$defs": {"text": text}, "properties": {"code": {"$ref": "#/$defs/text"}}}
    calls = [("compute", {"code": code}) for code in ("1", "22", "333")]
    answers, _ = in_session(sandbox, [replace(tool, parameters=schema)], *calls)
    statuses = [answer.status for answer in answers]
    assert statuses == [ResultStatus.OK, ResultStatus.BAD_ARGUMENTS, ResultStatus.OK]
