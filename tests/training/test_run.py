"""The name of starting weights: another one when what determines them changes."""

from pathlib import Path

import pytest

from matchtir.training import run as module_under_test
from matchtir.training.run import fingerprint

SETTINGS = {"model": {"layers": 1}, "seed": 1}


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


def test_every_source_folder_is_there() -> None:
    root = Path(module_under_test.matchtir.__file__).parent
    assert all([*(root / folder).glob("*.py")] for folder in module_under_test.SOURCES)


def test_the_fingerprint_is_of_the_files_that_settings_name(tmp_path: Path) -> None:
    file = tmp_path / "tools.py"
    file.write_text("one")
    settings = {"stages": [{"tasks": {"path": str(file), "tools": [f"{file}:Name"]}}]}
    known = fingerprint(settings)
    assert fingerprint(settings) == known
    file.write_text("two")
    assert fingerprint(settings) != known
