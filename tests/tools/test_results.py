import pytest

from matchtir.tools.sandbox import executed, reports_error
from matchtir.types import ResultStatus, ToolResult


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
