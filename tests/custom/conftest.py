import json
import socket
import subprocess
import textwrap
from contextlib import contextmanager

import pytest
from hydra.core.hydra_config import HydraConfig

from tests.scale.whole_runs import composed
from tests.tools.sandbox_helpers import until

TOOLS = '''
    """Tools of the tests."""

    import enum
    from typing import Literal

    from shelf import PRICES


    class Size(enum.Enum):
        BIG = 1


    def price(item: str, currency: Literal["euro", "pound"] = "euro") -> int:
        """Price of an item.<item>    currency: the currency"""
        if item not in PRICES:
            raise ValueError(f"no {item}")
        return PRICES[item] * (1 if currency == "euro" else 2)


    def colour(item: str) -> str:
        """Colour of an item.<item>"""
        return {"tea": "green", "milk": "white"}.get(item, "grey")


    class Basket:
        """A basket."""

        def __init__(self, items: list[str] = ()):
            self.items = list(items)

        def put(self, item: str) -> int:
            """Put an item in.<item>"""
            self.items.append(item)
            return len(self.items)

        def take(self, item: str) -> int:
            """Take an item out.<item>"""
            self.items.remove(item)
            return len(self.items)

        def _hidden(self):
            pass


    def _helper(x):
        return x
'''


@pytest.fixture
def module(tmp_path):
    """A file of tools, with a neighbour that it imports."""
    (tmp_path / "shelf.py").write_text("PRICES = {'tea': 3, 'milk': 2}\n")
    path = tmp_path / "desk.py"
    described = "\n\nArgs:\n    item: the item\n"
    path.write_text(textwrap.dedent(TOOLS).replace("<item>", described))
    return path


# Of a row that asks for a state and for no answer.
STATE = {"tools": ["put", "take"], "answer": None}
STATE |= {"initial_state": {"Basket": {"items": ["milk"]}}}
STATE |= {"gold_state": {"Basket": {"items": ["tea"]}}}


def make_row(**fields):
    """A row whose gold call is right; None takes a field away."""
    row = {
        "question": "What is the price of tea?",
        "gold_calls": [{"name": "price", "arguments": {"item": "tea"}}],
        "answer": 3,
    }
    return {key: value for key, value in (row | fields).items() if value is not None}


@pytest.fixture
def configure(tmp_path):
    """Makes the config of a program as `hydra.main` gives it, the run's folder a temporary one."""
    yield lambda name, *overrides: composed(tmp_path, *overrides, name=name)
    HydraConfig.instance().cfg = None


@pytest.fixture
def write(tmp_path):
    """Writes rows; returns their path."""

    def _write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return _write


@contextmanager
def served(*command, **options):
    """The port of a server that a program is for the time being, PORT in its arguments."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = [each.replace("PORT", str(port)) for each in command]
    process = subprocess.Popen(given, **options)

    def answers():
        with socket.socket() as probe:
            return process.poll() is not None or probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        assert until(answers, 60) and process.poll() is None, "the server ended"
        yield port
    finally:
        process.terminate()
        process.wait()
