from pathlib import PurePosixPath

import pytest
from omegaconf import OmegaConf

from matchtir.utils.instantiate import instantiate_group

PATH = {"_target_": "pathlib.PurePosixPath", "_args_": ["a"]}


def test_entries_are_built_in_order_and_null_removes_one() -> None:
    group = OmegaConf.create({"one": PATH, "two": None, "three": {**PATH, "_args_": ["b"]}})
    assert instantiate_group(group) == [PurePosixPath("a"), PurePosixPath("b")]


@pytest.mark.parametrize("group", [None, OmegaConf.create({})])
def test_no_group_gives_nothing(group: object) -> None:
    assert instantiate_group(group) == []


@pytest.mark.parametrize("entry", [3, {"every": 2}])
def test_anything_else_is_refused_by_name(entry: object) -> None:
    with pytest.raises(ValueError, match="progress: expected a node with a _target_"):
        instantiate_group(OmegaConf.create({"progress": entry}))
