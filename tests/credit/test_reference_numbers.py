import json
import os
from pathlib import Path

import pytest

from scripts import check_reference

REFERENCE = os.environ.get("MATCHTIR_REFERENCE")

pytestmark = pytest.mark.skipif(REFERENCE is None, reason="MATCHTIR_REFERENCE is not set")


@pytest.mark.parametrize("part", ["assignment", "turn_rewards", "dual_advantage"])
def test_the_release_options_reproduce_the_recorded_numbers(part):
    cases = json.loads((Path(str(REFERENCE)) / f"{part}.json").read_text())
    assert len(cases) == 300
    gaps = getattr(check_reference, f"check_{part}")(cases)
    assert gaps
    assert max(gaps.values()) < check_reference.TOLERANCE, gaps
