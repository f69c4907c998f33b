import pytest

from matchtir.tools.sandbox import ProcessPoolSandbox
from tests.tools.sandbox_helpers import LONG


@pytest.fixture(scope="module")
def sandbox():
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
