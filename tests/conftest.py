"""What tests of several folders share."""

import pytest
from hypothesis import settings

from matchtir.tools.sandbox import ProcessPoolSandbox
from tests.tools.sandbox_helpers import LONG

# Shared machines stall at times; a test is not wrong because it was slow once.
settings.register_profile("tests", deadline=None, max_examples=50)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def sandbox():
    """Starts no process before the first call."""
    pool = ProcessPoolSandbox(workers=2, timeout_s=LONG)
    yield pool
    pool.shutdown()


@pytest.fixture
def make_sandbox():
    """Makes sandboxes that are shut down after the test."""
    made = []

    def _make(**options):
        made.append(ProcessPoolSandbox(**({"workers": 2, "timeout_s": LONG} | options)))
        return made[-1]

    yield _make
    for pool in made:
        pool.shutdown()
