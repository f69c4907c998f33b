"""What became of a call, read from its result."""

from __future__ import annotations

import json

from matchtir.types import ResultStatus, ToolResult


def executed(result: ToolResult) -> bool:
    """Whether a call ran to its end."""
    return result.status in (ResultStatus.OK, ResultStatus.TRUNCATED)


def reports_error(output: str) -> bool:
    """Whether a tool's own words say that it failed: {"error": ...}, or text that begins so."""
    if output.lstrip().lower().startswith("error"):
        return True
    try:
        value = json.loads(output)
    except ValueError:
        return False
    return isinstance(value, dict) and bool(value.get("error"))
