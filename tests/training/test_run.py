"""Starting weights are made once, and again only when what determines them changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from matchtir.tasks.synthetic.copying import CopyTasks
from matchtir.training import run as module_under_test
from matchtir.training.data import Stage, TaskDataModule
from matchtir.training.optim import AdamW
from matchtir.training.run import fingerprint, warm_start
from matchtir.training.sft import SupervisedModule
from tests.training.training_parts import parts, trainer

SETTINGS = {"model": {"layers": 1}, "seed": 1}


def supervised() -> SupervisedModule:
    return SupervisedModule(**parts(scripted=False, optimizer=AdamW(lr=1e-2)))


def start(
    folder: Path, make_trainer: Callable[[], Trainer], settings: dict[str, Any] = SETTINGS
) -> tuple[dict[str, torch.Tensor], Path]:
    """Weights after a warm start, and their file."""
    module = supervised()
    data = TaskDataModule([Stage(CopyTasks(8), iterations=2, batch_size=2)], None, seed=1)
    file = warm_start(module, data, make_trainer, settings, folder / "cache")
    return module.policy.state_dict(), file


def no_trainer() -> Trainer:
    raise AssertionError("the weights were there already")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_weights_are_trained_once(tmp_path: Path) -> None:
    first, file = start(tmp_path, lambda: trainer(tmp_path, limit_val_batches=0))
    assert not equal(first, supervised().policy.state_dict())
    assert [*(tmp_path / "cache").iterdir()] == [file]  # nothing unfinished is left behind
    second, same_file = start(tmp_path, no_trainer)
    assert same_file == file and equal(first, second)


def test_other_settings_have_weights_of_their_own(tmp_path: Path) -> None:
    _, file = start(tmp_path, lambda: trainer(tmp_path, limit_val_batches=0))
    _, other = start(
        tmp_path, lambda: trainer(tmp_path, limit_val_batches=0), {**SETTINGS, "seed": 2}
    )
    assert file != other and {file, other} == {*(tmp_path / "cache").iterdir()}


def test_a_warm_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="there already"):
        start(tmp_path, no_trainer)
    assert not (tmp_path / "cache").exists()


def test_the_fingerprint_is_of_the_settings() -> None:
    known = fingerprint(SETTINGS)
    assert fingerprint({"seed": 1, "model": {"layers": 1}}) == known
    assert fingerprint({**SETTINGS, "model": {"layers": 2}}) != known
    assert fingerprint({**SETTINGS, "seed": 1.5}) != known
    assert fingerprint({**SETTINGS, "more": None}) != known


def test_the_fingerprint_is_of_the_code_and_its_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_under_test.matchtir, "__file__", str(tmp_path / "__init__.py"))
    source = tmp_path / "policy" / "policy.py"
    source.parent.mkdir()
    source.write_text("one")
    first = fingerprint(SETTINGS)
    source.write_text("two")
    second = fingerprint(SETTINGS)
    source.rename(source.with_name("other.py"))
    third = fingerprint(SETTINGS)
    monkeypatch.setattr(module_under_test.metadata, "version", lambda library: "0.0")
    assert len({first, second, third, fingerprint(SETTINGS)}) == 4


def test_every_source_pattern_finds_something() -> None:
    root = Path(module_under_test.matchtir.__file__).parent
    for pattern in module_under_test.SOURCES:
        assert [*root.glob(pattern)], pattern


def test_the_fingerprint_is_of_the_files_that_settings_name(tmp_path: Path) -> None:
    file = tmp_path / "tools.py"
    file.write_text("one")
    settings = {"stages": [{"tasks": {"path": str(file), "tools": [f"{file}:Name"]}}]}
    known = fingerprint(settings)
    assert fingerprint(settings) == known
    file.write_text("two")
    assert fingerprint(settings) != known
