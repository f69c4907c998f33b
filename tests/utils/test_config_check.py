from pathlib import PurePosixPath

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from matchtir.utils.config_check import ConfigError, check, instantiate_group


class Engine:
    def __init__(self, tokens: int, temperature: float = 1.0, inner: object = None) -> None:
        self.tokens = tokens

    @classmethod
    def load(cls, path: str) -> "Engine":
        return cls(len(path))


class Anything:
    def __init__(self, **options: object) -> None: ...


ENGINE = f"{__name__}.Engine"
KNOWN = "seed paths.logs engine engines"


def config(**changes: object) -> DictConfig:
    good = {
        "seed": 1,
        "paths": {"logs": "here"},
        "engine": {"_target_": ENGINE, "tokens": 2},
    }
    return OmegaConf.create(good | changes)


def problems(**changes: object) -> list[str]:
    """The lines of the error, without its head."""
    with pytest.raises(ConfigError) as raised:
        check(config(**changes), KNOWN)
    return [line.strip() for line in str(raised.value).splitlines()[1:]]


def test_a_good_config_passes_and_is_built() -> None:
    check(config(), KNOWN)
    assert instantiate(config().engine).tokens == 2


def test_an_unknown_top_level_key_is_named_with_the_closest_known_one() -> None:
    assert problems(sed=3) == ["sed: nothing reads this key; did you mean seed?"]


def test_an_unknown_key_of_a_plain_section_is_named_in_full() -> None:
    assert problems(paths={"logs": "here", "longs": "there"}) == [
        "paths.longs: nothing reads this key; did you mean paths.logs?"
    ]


def test_a_target_that_nothing_reads_is_refused() -> None:
    assert problems(motor={"_target_": ENGINE, "tokens": 1})[0].startswith("motor: nothing reads")


def test_an_argument_that_the_target_does_not_take() -> None:
    node = {"_target_": ENGINE, "tokens": 1, "temprature": 0.5}
    assert problems(engine=node) == [
        f"engine.temprature: {ENGINE} takes no such argument; did you mean temperature?"
    ]


def test_an_argument_that_the_target_needs() -> None:
    assert problems(engine={"_target_": ENGINE}) == [f"engine.tokens: {ENGINE} needs this argument"]


def test_nested_targets_and_lists_of_them() -> None:
    inner = {"_target_": ENGINE, "tokens": 1, "x": 0}
    found = problems(
        engine={"_target_": ENGINE, "tokens": 1, "inner": inner},
        engines=[{"_target_": ENGINE, "tokens": 1}, inner],
    )
    assert [line.split(":")[0] for line in found] == ["engine.inner.x", "engines.1.x"]


def test_every_problem_is_listed() -> None:
    assert len(problems(sed=1, engine={"_target_": ENGINE, "x": 0})) == 3


@pytest.mark.parametrize(
    "target", ["matchtir.nowhere.Engine", "matchtir.utils.config_check.Nothing", "Engine"]
)
def test_a_target_that_cannot_be_imported(target: str) -> None:
    (line,) = problems(engine={"_target_": target})
    assert line.startswith(f"engine._target_: {target} cannot be imported")


def test_partial_targets_may_lack_arguments_but_not_take_others() -> None:
    check(config(engine={"_target_": ENGINE, "_partial_": True}), KNOWN)
    assert problems(engine={"_target_": ENGINE, "_partial_": True, "x": 0})


def test_a_class_method_and_a_target_that_takes_anything() -> None:
    check(config(engine={"_target_": f"{ENGINE}.load", "path": "p"}), KNOWN)
    check(config(engine={"_target_": f"{__name__}.Anything", "whatever": 1}), KNOWN)


def test_missing_values_and_broken_interpolations_are_named() -> None:
    found = problems(
        engine={"_target_": ENGINE, "tokens": "???"}, paths={"logs": "${paths.nowhere}"}
    )
    assert found[1] == "engine.tokens: a value must be given"
    assert found[0].startswith("paths.logs: ") and "nowhere" in found[0]


def test_a_target_set_to_null_is_fine() -> None:
    check(config(engine=None), KNOWN)


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
