"""What a comparison needs of each run, read from the folders that runs leave behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from matchtir.reports.progress import Curves, Scores
from matchtir.utils.run_folder import (
    CONFIG_FILE,
    METRICS_FILE,
    RESULT_FILE,
    WATCHING,
    leaves,
    matches,
    read_metrics,
)

START = "model.folder"  # the setting that says where a run's weights come from


@dataclass(frozen=True, slots=True)
class RunData:
    """One training run; `before` and `after` are None where it has not come to its end."""

    folder: Path
    group: str  # its experiment and choices, without the seed
    seed: int
    start: str  # where its starting weights come from; "": the configured ones
    settings: Mapping[str, Any]  # by dotted key, without seed, start and `WATCHING`
    curves: Curves
    before: Scores | None
    after: Scores | None
    seconds: float | None  # of the whole run

    @property
    def name(self) -> str:
        """Group and seed."""
        return f"{self.group} seed={self.seed}"

    @property
    def method(self) -> str:
        """The settings as text: runs with the same differ in seed and start alone."""
        return json.dumps(self.settings, sort_keys=True, default=str)


def find_runs(paths: Sequence[Path]) -> list[RunData]:
    """The runs among `paths` and below them, in order of their folders.

    Files among folders are left out: reports lie beside the runs, where `runs/*` names them too.

    Raises:
        FileNotFoundError: a path has no run.
        ValueError: a file of a run cannot be read as what it should be.
    """
    folders: dict[Path, Path] = {}  # as given, by where it is: one run however often it is named
    for path in [path for path in paths if not path.is_file()] or paths:
        below = [file.parent for file in path.rglob(CONFIG_FILE)] if path.is_dir() else []
        found = sorted((f for f in below if (f / METRICS_FILE).exists()), key=_in_order)
        if not found:
            raise FileNotFoundError(f"{path}: no run ({CONFIG_FILE} and {METRICS_FILE}) is there")
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
    return [read_run(folder) for folder in folders.values()]


def _in_order(folder: Path) -> list[tuple[bool, int, str]]:
    """Jobs 2 and 10 of a sweep in this order."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in folder.parts]


def read_run(folder: Path) -> RunData:
    """The run of a folder; one that is still under way has no scores."""
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE))
    finished = (folder / RESULT_FILE).exists()
    result = _json(folder / RESULT_FILE) if finished else {}
    seed, start = int(config["seed"]), (config.get("model") or {}).get("folder")
    named = "/".join(folder.resolve().parts[-3:])
    return RunData(
        folder=folder,
        group=(config.get("identity") or {}).get("group", named),
        seed=seed,
        start=str(start or ""),
        settings=_method_settings(config, seed, start),
        curves=read_metrics(folder / METRICS_FILE),
        before=_json(folder / "before.json") if finished else None,
        after=_json(folder / "after.json") if finished else None,
        seconds=result.get("seconds"),
    )


def _method_settings(config: Mapping[str, Any], seed: int, start: str | None) -> dict[str, Any]:
    """The settings by which two runs are different methods."""
    return {
        key: value
        for key, value in leaves(config).items()
        if not matches(key, WATCHING)
        and not (key.rpartition(".")[2] == "seed" and value == seed)
        and key != START
        and (start is None or value != start)
    }


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
