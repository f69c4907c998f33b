"""Only the messages that are listed are silenced."""

import warnings

import pytest
from transformers.utils import logging as transformers_logging

from matchtir.utils.quiet import quiet


@pytest.fixture(autouse=True)
def as_before():
    with warnings.catch_warnings():
        yield
    transformers_logging.enable_progress_bar()


def test_listed_messages_are_silent_and_no_others():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        quiet()
        warnings.warn(
            "`isinstance(treespec, LeafSpec)` is deprecated, use ...", FutureWarning, stacklevel=2
        )
        warnings.warn("something else is deprecated", FutureWarning, stacklevel=2)
    assert [str(warning.message) for warning in heard] == ["something else is deprecated"]


@pytest.mark.parametrize("watched", [True, False])
def test_progress_bars_are_for_terminals(monkeypatch, watched):
    transformers_logging.enable_progress_bar()
    monkeypatch.setattr("sys.stderr.isatty", lambda: watched, raising=False)
    quiet()
    assert transformers_logging.is_progress_bar_enabled() == watched
