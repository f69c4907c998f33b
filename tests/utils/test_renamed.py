import logging

import pytest

from matchtir.utils.renamed import RENAMED, with_current_names
from tests.test_configs import EVERY_OPTION, check_program

TABLE = {"old": "new.place", "group=a": "group=b key=1"}


@pytest.mark.parametrize(
    ("given", "current"),
    [
        ("old=1", ["new.place=1"]),
        ("+old.under=x=y", ["+new.place.under=x=y"]),
        ("~old", ["~new.place"]),
        ("group=a", ["group=b", "key=1"]),
        ("older=1", ["older=1"]),
        ("group=ab", ["group=ab"]),
        ("-m", ["-m"]),
    ],
)
def test_former_names_are_replaced_and_said(given, current, caplog):
    with caplog.at_level(logging.WARNING):
        assert with_current_names([given, "seed=1"], TABLE) == [*current, "seed=1"]
    assert len(caplog.records) == (current != [given])


def test_a_former_option_in_a_sweep_is_refused_with_its_new_words():
    with pytest.raises(SystemExit, match="group=a is a former name of `group=b key=1`"):
        with_current_names(["-m", "group=b,a"], TABLE)


# What is one option today is composed with all others.
@pytest.mark.slow
@pytest.mark.parametrize(
    "words", sorted({now for name, now in RENAMED.items() if "=" in name} - EVERY_OPTION.keys())
)
def test_what_stands_for_a_former_option_composes(words):
    needed = ["validation.tasks.path=tasks.jsonl"] if "=custom" in words else []
    data = ["data=nestful"] if words.startswith("data.") else []  # the default has no rows
    check_program("train", *data, *words.split(), *needed)
