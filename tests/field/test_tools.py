"""Tools as people write them: decorated, static, with odd signatures."""

import pytest

from matchtir.tasks.tool_sources import ToolSourceError, read_tools
from matchtir.tools.sandbox import replay_all
from matchtir.types import Task, ToolCall

DOC = '''
    """It.

    Args:
        item: the item
    """
    return item
'''
DECORATED = f"""
from functools import cache, lru_cache, wraps

def _logged(function):
    @wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)
    return inner

@lru_cache(maxsize=None)
def cached(item: str) -> str:{DOC}
@_logged
def wrapped(item: str) -> str:{DOC}
class Shelf:
 @staticmethod
 def measure(item: str) -> str:{DOC}
 @classmethod
 def label(cls, item: str) -> str:{DOC}
 @cache
 def put(self, item: str) -> str:{DOC}"""


def write(tmp_path, text):
    path = tmp_path / "desk.py"
    path.write_text(text)
    return str(path)


def called(sandbox, tools, *calls):
    (replay,) = replay_all([(Task("t", "q", tools, (), ""), calls)], sandbox)
    return replay.results


def test_decorated_static_and_class_methods_are_tools_that_run(tmp_path, sandbox):
    tools = read_tools(write(tmp_path, DECORATED))
    names = [tool.name for tool in tools]
    assert names == ["cached", "wrapped", "measure", "label", "put"]
    assert all(list(tool.parameters["properties"]) == ["item"] for tool in tools)
    calls = [ToolCall(name, {"item": "ink"}) for name in names]
    results = called(sandbox, tools, *calls)
    assert [result.output for result in results] == ["ink"] * 5


@pytest.mark.parametrize(
    ("signature", "kind"),
    [
        ("*items: str", "variadic positional items"),
        ("items: str, /", "positional-only items"),
        ("**items: str", "variadic keyword items"),
    ],
)
def test_a_signature_that_no_call_fits_is_refused_by_name(tmp_path, signature, kind):
    text = f'def odd({signature}) -> str:\n    """Odd.\n\n    Args:\n        items: x\n    """\n'
    with pytest.raises(ToolSourceError, match=f"the tool odd: no call by name fits its {kind}"):
        read_tools(write(tmp_path, text))
