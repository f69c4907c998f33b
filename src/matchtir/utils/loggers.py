"""What is said of a run: its table `metrics.csv`, W&B, and which warnings are silenced."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import logging
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.utilities import rank_zero_only

from matchtir.utils.run_folder import METRICS_FILE, RESULT_FILE, read_rows, replace_text

log = logging.getLogger(__name__)

STEP = "iteration"  # the horizontal axis of everything in W&B
SECONDS_TO_BEGIN, SECONDS_TO_END = 60.0, 300.0  # a run waits no longer for W&B
ID_FILE = "wandb_id.txt"
MAX_GROUP = 128  # characters of a group's name, as W&B has it
ARTIFACTS = {"policy": "model", "checkpoints": "model", "traces": "traces"}  # folders: types

# Messages about nothing that can be changed here: (category, beginning).
CHATTER: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),  # Lightning with torch
    (UserWarning, r"Checkpoint directory .* exists and is not empty"),  # a resumed run has one
    (UserWarning, r"The '\w+_dataloader' does not have many workers"),  # tasks are in memory
    # The schedule counts iterations, also one that has nothing to learn from.
    (UserWarning, r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`"),
    (UserWarning, r"Found \d+ module\(s\) in eval mode at the start"),  # a policy has no dropout
    (UserWarning, r"It is recommended to use `self\.log\(.*sync_dist=True"),  # vLLM's group of one
)


def quiet() -> None:
    """Silence these warnings, Lightning's tips, and where nobody watches the bars of weights.

    Here and not in a config, since Lightning sets its level when it is imported. What it warns of
    is said once, by the root logger.
    """
    from transformers.utils.logging import disable_progress_bar

    for category, beginning in CHATTER:
        warnings.filterwarnings("ignore", beginning, category)
    for library in ("lightning", "huggingface_hub"):
        logging.getLogger(library).handlers.clear()  # the root logger's say the same
    # Its callbacks are heard: a user has asked for them.
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not sys.stderr.isatty():
        disable_progress_bar()


def close(opened: Iterable[Any]) -> None:
    """End the loggers that have an end, as W&B's has."""
    for logger in opened:
        if hasattr(logger, "close"):
            logger.close()


class CsvLogger(loggers.Logger):
    """Writes `<folder>/metrics.csv`: a row per step, a column per metric, blank where not measured.

    Each row is on disk before `log_metrics` returns. Metrics of the same step share a row, in
    whatever order they come; a new metric adds a column on the right; the `epoch` that Lightning
    adds to some is left out. A file that is there is gone on with; `resume` says from where.
    """

    name = ""  # of experiment and run: the folder says it
    version = ""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(folder) / METRICS_FILE
        self._columns: list[str] = ["step"]
        self._rows: dict[int, dict[str, str]] = {}
        if self.path.exists():
            self._columns, rows = read_rows(self.path)
            self._rows = {int(row["step"]): row for row in rows}
        self._appends = False  # not yet: the last line of a file that is there may be torn

    @property
    def experiment(self) -> CsvLogger:
        """What callbacks of others ask a logger for: there is nothing behind it."""
        return self

    @property
    def save_dir(self) -> str:
        """The folder of the table."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder has the resolved config."""

    @rank_zero_only
    def resume(self, step: int) -> None:
        """Drop the rows behind `step`: the run goes on from there and measures them anew."""
        self._rows = {number: row for number, row in self._rows.items() if number <= step}
        self._appends = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add the metrics to the row of `step`.

        Raises:
            ValueError: `step` is missing.
        """
        if step is None:
            raise ValueError("metrics.csv needs a step for every row")
        cells = {name: _cell(value) for name, value in metrics.items() if name != "epoch"}
        new_columns = [name for name in cells if name not in self._columns]
        self._columns += new_columns
        is_last = step > max(self._rows, default=-1)
        self._rows.setdefault(step, {"step": str(step)}).update(cells)
        if is_last and self._appends and not new_columns:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._text([self._rows[step]]))
        else:
            self._rewrite()

    def _rewrite(self) -> None:
        head = dict(zip(self._columns, self._columns, strict=True))
        rows = [self._rows[step] for step in sorted(self._rows)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.path, self._text([head, *rows]))
        self._appends = True

    def _text(self, rows: Sequence[Mapping[str, str]]) -> str:
        lines = io.StringIO()
        csv.DictWriter(lines, self._columns, restval="", lineterminator="\n").writerows(rows)
        return lines.getvalue()


def _cell(value: float) -> str:
    return repr(value if isinstance(value, int) else float(value))


def _only_watching(act: Callable[..., None]) -> Callable[..., None]:
    """What goes wrong ends here, counted and said once, since W&B is only a spectator."""

    @functools.wraps(act)
    @rank_zero_only
    def guarded(self: WandbLogger, *args: Any, **kwargs: Any) -> None:
        if self.given_up:
            return
        try:
            act(self, *args, **kwargs)
        except Exception as error:
            self.failures += 1
            if not self._said:
                log.warning("W&B: %s: %s. The run goes on.", type(error).__name__, error)
            self._said = True

    return guarded


class WandbLogger(loggers.WandbLogger):
    """Lightning's logger of W&B, which can fail without stopping a run and keeps what a run leaves.

    Where W&B cannot be reached at the start the run is logged offline, to be synchronised later
    (`wandb sync <folder>/wandb/offline-run-*`). A resumed run goes on as the same run of W&B. The
    environment variables of W&B hold (WANDB_MODE, WANDB_ENTITY, ...), names too where the config
    leaves them their place. The end of a run adds its gains to the summary.

    Args:
        folder: of the run; W&B's files go to `<folder>/wandb`.
        project, group, name, tags, entity, job_type: as W&B has them; a group of more than 128
            characters is cut, and ends in a hash of the whole.
        offline: log to files only.
        log_model: whether policy, checkpoints and traces become artifacts at the end.
        code: a folder whose sources are kept; None: none.
        settings: further arguments of `wandb.init`: notes, ...
    """

    def __init__(
        self,
        folder: str,
        project: str,
        group: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        entity: str | None = None,
        job_type: str = "train",
        offline: bool = False,
        log_model: bool = False,
        code: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            name=name,
            save_dir=folder,
            project=project,
            group=group and _short(group),
            tags=list(tags),
            entity=entity,
            job_type=job_type,
            **settings,
        )
        self._folder = Path(folder)
        self._mode: Any = "offline" if offline else os.environ.get("WANDB_MODE", "online")
        self._artifacts = ARTIFACTS if log_model else {}
        self._code = code
        self._tables: dict[str, Any] = {}
        self.failures = 0
        self.given_up = False
        self._said = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run; it begins when it is first asked for. One that cannot is without effect."""
        begins = self._experiment is None and not self.given_up
        modes = ("online", "offline") if self._mode == "online" else (self._mode,)
        for mode in modes if begins else ():
            try:
                self._experiment = self._begin(mode)
                break
            except Exception as error:  # no network, no account, another service's trouble
                self.failures += 1
                log.warning("W&B cannot begin %s (%s). The run goes on.", mode, error)
                (self._folder / ID_FILE).unlink(missing_ok=True)  # the attempt holds on to the id
        self.given_up = self._experiment is None
        return _DummyExperiment() if self.given_up else self._experiment

    def _begin(self, mode: Any) -> Any:
        import wandb

        id_file = self._folder / ID_FILE
        self._folder.mkdir(parents=True, exist_ok=True)
        if not id_file.exists():  # an agent of a W&B sweep has chosen one
            id_file.write_text(os.environ.get("WANDB_RUN_ID", secrets.token_hex(4)), "utf-8")
        settings = wandb.Settings(init_timeout=SECONDS_TO_BEGIN, finish_timeout=SECONDS_TO_END)
        given = {key: value for key, value in self._wandb_init.items() if key != "anonymous"}
        given |= {"id": id_file.read_text(encoding="utf-8").strip(), "mode": mode}
        run = wandb.init(**given, settings=settings, reinit="create_new")
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        for curves in ("train/*", "val/*", "test/*"):
            run.define_metric(curves, step_metric=STEP, summary="min,max,last")
        if self._code is not None:
            run.log_code(self._code)
        return run

    log_hyperparams = _only_watching(loggers.WandbLogger.log_hyperparams)

    @_only_watching
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log the metrics of an iteration."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self.experiment.log({**values, STEP: step})

    @_only_watching
    def log_table(
        self, key: str, columns: list[str], data: list[list[Any]], *, step: int | None = None
    ) -> None:
        """Add rows to a table, which is shown whole."""
        import wandb

        table = self._tables.setdefault(key, wandb.Table([*columns], log_mode="INCREMENTAL"))
        for row in data:
            table.add_data(*row)
        self.log_metrics({key: table}, step)

    @_only_watching
    def log_histograms(self, histograms: Mapping[str, Sequence[float]], step: int) -> None:
        """Log how the values of each name are distributed."""
        import wandb

        self.log_metrics({n: wandb.Histogram(list(v)) for n, v in histograms.items()}, step)

    @_only_watching
    def _finish(self) -> None:
        import wandb

        run, result = self.experiment, self._folder / RESULT_FILE
        if result.exists():
            gains = json.loads(result.read_text(encoding="utf-8")).get("gain", {})
            run.summary.update({f"gain/{name}": dict(gain) for name, gain in gains.items()})
        for name, kind in self._artifacts.items():
            if (self._folder / name).exists():
                artifact = wandb.Artifact(f"{name}-{run.id}", kind)
                artifact.add_dir(str(self._folder / name))
                run.log_artifact(artifact)
        run.finish()

    @rank_zero_only
    def close(self) -> None:
        """End the run of W&B, waiting a while for what is still to be sent."""
        if self._experiment is not None:
            self._finish()
        if self.failures:
            log.warning("W&B: %d failures; metrics.csv has every metric", self.failures)


def _short(group: str) -> str:
    """A group's name as W&B takes it."""
    if len(group) <= MAX_GROUP:
        return group
    return f"{group[: MAX_GROUP - 9]}~{hashlib.sha256(group.encode()).hexdigest()[:8]}"
