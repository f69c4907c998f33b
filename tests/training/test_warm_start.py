"""Starting weights are made once, and again only when what determines them changes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from matchtir.rollout.episode import EpisodeLimits
from matchtir.rollout.renderer import Renderer
from matchtir.rollout.runner import EpisodeRunner
from matchtir.rollout.transformers_engine import TransformersEngine
from matchtir.tasks.synthetic.copying import CopyTasks
from matchtir.training import run as module_under_test
from matchtir.training.data import Stage, TaskDataModule
from matchtir.training.optim import AdamW
from matchtir.training.run import fingerprint, warm_start
from matchtir.training.sft import SupervisedModule
from tests.policy.tiny_policy import small
from tests.rollout.episode_fakes import FakeSandbox

SETTINGS = {"model": {"layers": 1}, "seed": 1}


def supervised() -> SupervisedModule:
    loaded = small(layers=1)
    renderer = Renderer(loaded.tokenizer, system_prompt="")
    return SupervisedModule(
        policy=loaded.policy,
        renderer=renderer,
        engine=TransformersEngine(renderer.stop_token_ids),
        sandbox=FakeSandbox(),  # type: ignore[arg-type]
        episodes=partial(EpisodeRunner, limits=EpisodeLimits()),
        optimizer=AdamW(lr=1e-2),
        micro_batch_tokens=1000,
        max_grad_norm=1.0,
        seed=1,
    )


def trainer(folder: Path) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
    )


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
    first, file = start(tmp_path, lambda: trainer(tmp_path))
    assert not equal(first, supervised().policy.state_dict())
    assert [*(tmp_path / "cache").iterdir()] == [file]  # nothing unfinished is left behind
    second, same_file = start(tmp_path, no_trainer)
    assert same_file == file and equal(first, second)


def test_other_settings_have_weights_of_their_own(tmp_path: Path) -> None:
    _, file = start(tmp_path, lambda: trainer(tmp_path))
    _, other = start(tmp_path, lambda: trainer(tmp_path), {**SETTINGS, "seed": 2})
    assert file != other and {file, other} == {*(tmp_path / "cache").iterdir()}


def test_a_warm_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Trainer:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        start(tmp_path, fail)
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
