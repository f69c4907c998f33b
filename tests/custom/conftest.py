import json
import textwrap

import pytest
from hydra.core.hydra_config import HydraConfig

from tests.scale.whole_runs import composed

TOOLS = '''
    """Tools of the tests."""

    import enum
    from typing import Literal

    from shelf import PRICES


    class Size(enum.Enum):
        BIG = 1


    def price(item: str, currency: Literal["euro", "pound"] = "euro") -> int:
        """Price of an item.

        Args:
            item: the item
            currency: the currency
        """
        if item not in PRICES:
            raise ValueError(f"no {item}")
        return PRICES[item] * (1 if currency == "euro" else 2)


    def colour(item: str) -> str:
        """Colour of an item.

        Args:
            item: the item
        """
        return {"tea": "green", "milk": "white"}.get(item, "grey")


    class Basket:
        """A basket."""

        def __init__(self, items: list[str] = ()):
            self.items = list(items)

        def put(self, item: str) -> int:
            """Put an item in.

            Args:
                item: the item
            """
            self.items.append(item)
            return len(self.items)

        def take(self, item: str) -> int:
            """Take an item out.

            Args:
                item: the item
            """
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
    path.write_text(textwrap.dedent(TOOLS))
    return path


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
