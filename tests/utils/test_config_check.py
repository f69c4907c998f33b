from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pytest
import torch  # noqa: F401 (once it is there, every target is judged)
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from matchtir.utils.config_check import (
    ConfigError,
    check,
    check_packages,
    fits,
    instantiate_group,
    plain_errors,
)


class Engine:
    def __init__(self, tokens: int, temperature: float = 1.0, inner: object = None) -> None:
        if tokens < 0:
            raise ValueError(f"tokens={tokens} is below 0")
        self.tokens = tokens

    @classmethod
    def load(cls, path: str) -> "Engine":
        return cls(len(path))


class Larger(Engine):
    needs = {"no_such_package": "it cannot be"}  # noqa: RUF012

    def __init__(self, size: str, **settings: Any) -> None:
        super().__init__(**settings)


class Anything:
    def __init__(self, **options: object) -> None: ...


ENGINE, LARGER = f"{__name__}.Engine", f"{__name__}.Larger"
KNOWN = "seed paths.logs engine engines"


def engine(**arguments):
    return {"_target_": ENGINE, **arguments}


def config(changes):
    """A good config, with other values at dotted keys."""
    made = OmegaConf.create({"seed": 1, "paths": {"logs": "here"}, "engine": engine(tokens=2)})
    for key, value in changes.items():
        OmegaConf.update(made, key, value, merge=False)
    return made


@pytest.mark.parametrize(
    "node",
    [
        None,
        engine(tokens=2),
        engine(_partial_=True),  # may lack arguments
        {"_target_": f"{ENGINE}.load", "path": "p"},
        {"_target_": f"{__name__}.Anything", "whatever": 1},
        {"_target_": LARGER, "size": "l", "tokens": 1},
    ],
)
def test_good_nodes(node):
    check(config({"engine": node}), KNOWN)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sed": 3}, ["sed: nothing reads this key; did you mean seed?"]),
        ({"paths.longs": 1}, ["paths.longs: nothing reads this key; did you mean paths.logs?"]),
        ({"motor": engine(tokens=1)}, ["motor: nothing reads this key"]),
        ({"engine": engine(tokens=1, temprature=0.5)},
         [f"engine.temprature: {ENGINE} takes no such argument; did you mean temperature?"]),
        ({"engine": engine()}, [f"engine.tokens: {ENGINE} needs this argument"]),
        ({"engine": engine(tokens="no")}, [f"engine.tokens: {ENGINE} takes int, not 'no'"]),
        ({"engine": {"_target_": LARGER, "size": 1, "tokens": 1.5, "token": 1}},
         ["engine.size: ", "engine.tokens: ", "engine.token: "]),
        # What is referred to is judged once, where it stands.
        ({"engine": engine(tokens=1, x=0), "engines": ["${engine}"]}, ["engine.x: "]),
        # What a partial node is given is built, to see whether it can be.
        ({"engine": engine(_partial_=True, inner=engine(tokens=-1))}, ["engine.inner: tokens=-1 "]),
        ({"engine": engine(tokens=1, inner=engine(tokens=1, x=0)),
          "engines": [engine(tokens=1), engine(tokens=1, x=0)]},
         ["engine.inner.x: ", "engines.1.x: "]),
        ({"sed": 1, "engine": engine(x=0)}, ["sed: ", "engine.x: ", "engine.tokens: "]),
        *(
            ({"engine": {"_target_": target}}, [f"engine._target_: {target} cannot be imported"])
            for target in ("matchtir.nowhere.X", "matchtir.utils.config_check.Nothing", "Engine")
        ),
        ({"engine": engine(tokens="???"), "paths.logs": "???"},
         ["engine.tokens: a value must be given", "paths.logs: a value must be given"]),
        ({"paths.logs": "${seat}"}, ["paths.logs: Interpolation key 'seat' not found"]),
    ],
)  # fmt: skip
def test_every_mistake_is_named(changes, named):
    with pytest.raises(ConfigError) as raised:
        check(config(changes), KNOWN)
    lines = [line.strip() for line in str(raised.value).splitlines()[1:]]
    assert len(lines) == len(named)
    assert all(line.startswith(name) for line, name in zip(lines, named, strict=True))


@pytest.mark.parametrize(
    ("value", "hint", "good"),
    [
        (True, bool, True),
        ("false", bool, False),
        (True, int, False),
        (1, float, True),
        (None, float | None, True),
        ("mean", Literal["mean", "sum"], True),
        ("max", Literal["mean", "sum"], False),
        ([1, 2], Sequence[int], True),
        ([1, "2"], tuple[int, ...], False),
        ("ab", Sequence[str], False),
        (None, Sequence[str], False),
        ({"a": 1.0}, Mapping[str, float], True),
        ({"a": "b"}, dict[str, float], False),
        (engine(tokens=1), int, True),  # what is made of it is not known
        ("anything", Engine, True),
    ],
)
def test_what_fits_a_type(value, hint, good):
    assert fits(value, hint) == good


def test_a_missing_package_is_named_with_how_to_install_it():
    check_packages(config({}))
    larger = {"_target_": LARGER, "_partial_": True}
    with pytest.raises(ConfigError, match=r"engine\._target_: .*no_such_package: it cannot be"):
        check_packages(config({"engine": larger}))


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda: check_packages(config({"engine": {"_target_": LARGER}})), "not installed"),
        (lambda: Path("/no/such/file").read_text(), "/no/such/file"),
        (lambda: instantiate({"a": [{"_target_": "os.stat", "path": "/no/f"}]}), "^.Errno 2. No"),
        (lambda: instantiate({"a": {"b": engine(tokens=-1)}}), "a.b: tokens=-1 is"),
    ],
)
def test_a_users_mistake_ends_with_its_message(mistake, said, monkeypatch):
    with pytest.raises(SystemExit, match=said), plain_errors():
        mistake()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises((ValueError, OSError, InstantiationException)), plain_errors():
        mistake()


def test_what_is_no_mistake_of_the_user_keeps_its_traceback():
    with pytest.raises(ValueError, match="not enough values"), plain_errors():
        _, _ = (1,)


PATH = {"_target_": "pathlib.PurePosixPath", "_args_": ["a"]}


def test_entries_are_built_in_order_and_null_removes_one():
    group = OmegaConf.create({"one": PATH, "two": None, "three": {**PATH, "_args_": ["b"]}})
    assert instantiate_group(group) == [PurePosixPath("a"), PurePosixPath("b")]
    assert instantiate_group(None) == instantiate_group(OmegaConf.create({})) == []
    with pytest.raises(ValueError, match="progress: expected a node with a _target_"):
        instantiate_group(OmegaConf.create({"progress": {"every": 2}}))
