"""Tools of a Python module."""

import pytest

from matchtir.tasks.tool_sources import ToolSourceError, read_tools
from matchtir.tools.sandbox import replay_all
from matchtir.types import Task, ToolCall


def test_public_functions_and_methods_are_tools_with_schemas(module):
    tools = {tool.name: tool for tool in read_tools(str(module))}
    assert list(tools) == ["price", "colour", "put", "take"]
    price = tools["price"]
    assert price.description == "Price of an item."
    assert price.parameters["required"] == ["item"]
    assert price.parameters["properties"]["currency"]["enum"] == ["euro", "pound"]
    assert [tools[name].owner for name in ("price", "put", "take")] == ["", "Basket", "Basket"]
    item = {"type": "string", "description": "the item"}
    assert tools["put"].parameters["properties"] == {"item": item}


@pytest.mark.parametrize(
    ("end", "named", "expected"),
    [
        ("", [":Basket"], ["Basket.put", "Basket.take"]),
        ("", [":price", ":colour"], [".price", ".colour"]),
        ("__all__ = ['colour']", [""], [".colour"]),
        ("class Bag(Basket):\n    pass\n\n__all__ = ['Bag']", [""], ["Bag.put", "Bag.take"]),
    ],
)
def test_tools_are_those_that_are_named_and_methods_are_inherited(module, end, named, expected):
    module.write_text(f"{module.read_text()}\n{end}\n")
    tools = read_tools([f"{module}{name}" for name in named])
    assert [f"{tool.owner}.{tool.name}" for tool in tools] == expected


def test_an_importable_module_is_found_by_name(module, monkeypatch):
    monkeypatch.syspath_prepend(str(module.parent))
    assert len(read_tools("desk")) == 4


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(x: int):\n    return x\n", "the tool f: .*no docstring"),
        ('def f(x):\n    """F.\n\n    Args:\n        x: x\n    """\n', "the tool f: .*type hint"),
        ('def f(x: int):\n    """F."""\n', "the tool f: .*no description for the argument 'x'"),
        ("class A:\n    def f(self, x):\n        pass\n", "the tool A.f: "),
        ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere'"),
        ("X = 1\n", "no public function, and no public class with methods"),
        ("__all__ = ['gone']\n", "it defines no gone"),
    ],
)
def test_what_cannot_be_a_tool_is_named(tmp_path, code, message):
    path = tmp_path / "odd.py"
    path.write_text(code)
    with pytest.raises(ToolSourceError, match=f"odd.py: {message}"):
        read_tools(str(path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.py", "no such file, and no module"),
        ("no.such.module", "no such file, and no module"),
        ({"command": "python server.py"}, "an MCP server is given as"),
        ({"comand": ["python"]}, "an MCP server is given as"),
        ({"url": "http://x", "network": True}, "what runs here with network"),
        ({"command": ["python"], "token": "KEY"}, "an MCP server is given as"),
    ],
)
def test_sources_that_are_not_there(source, message):
    with pytest.raises(ToolSourceError, match=message):
        read_tools(source)


def test_two_tools_of_one_name_are_refused(module):
    with pytest.raises(ToolSourceError, match="there already is a tool called 'colour'"):
        read_tools([f"{module}:colour", str(module)])


def test_neighbours_of_the_same_name_are_not_mixed_up(tmp_path, sandbox):
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tables.py").write_text(f"VALUE = '{folder}'\n")
        files.append(tmp_path / folder / "tools.py")
        head = f'from tables import VALUE\n\n\ndef of_{folder}() -> str:\n    """Its value."""\n'
        files[-1].write_text(f"{head}    return VALUE\n")
    tools = read_tools([str(file) for file in files])
    calls = [ToolCall(f"of_{folder}", {}) for folder in "abab"]
    task = Task("t", "q", tools, (), "")
    (replay,) = replay_all([(task, calls)], sandbox)
    assert [result.output for result in replay.results] == list("abab")
