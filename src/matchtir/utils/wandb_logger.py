"""Weights & Biases as a Lightning logger that can fail without stopping a run."""

from __future__ import annotations

import logging
import secrets
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

STEP = "iteration"  # the horizontal axis of everything logged
SECONDS_TO_BEGIN, SECONDS_TO_END = 60.0, 300.0  # a run waits no longer for W&B
ID_FILE = "wandb_id.txt"


class WandbLogger(Logger):
    """Logs to W&B; what goes wrong there is counted, said once, and does not reach the run.

    Where W&B cannot be reached at the start the run is logged offline, to be synchronised later
    (`wandb sync <folder>/wandb/offline-run-*`). A resumed run goes on as the same run of W&B.

    Args:
        folder: of the run; W&B's files go to `<folder>/wandb`.
        project, group, name, tags, entity, job_type: as W&B has them.
        offline: log to files only.
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
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.offline = offline
        self.failures = 0
        self._settings: dict[str, Any] = {
            "project": project,
            "group": group,
            "name": name,
            "tags": list(tags),
            "entity": entity,
            "job_type": job_type,
        }
        self._run: Any = None
        self._given_up = False
        self._said = False

    @property
    def name(self) -> str:
        """What Lightning calls the experiment; unused here."""
        return ""

    @property
    def version(self) -> str:
        """What Lightning calls the run; unused here."""
        return ""

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Keep the resolved config."""
        values = vars(params) if isinstance(params, Namespace) else params
        self._guarded(lambda run: run.config.update(values, allow_val_change=True))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics of an iteration."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self._guarded(lambda run: run.log({**values, STEP: step}))

    @rank_zero_only
    def log_histograms(self, histograms: Mapping[str, Sequence[float]], step: int) -> None:
        """Log how the values of each name are distributed."""
        self._guarded(
            lambda run: run.log(
                {name: wandb.Histogram(list(values)) for name, values in histograms.items()}
                | {STEP: step}
            )
        )

    @rank_zero_only
    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Log a table."""
        self._guarded(
            lambda run: run.log(
                {name: wandb.Table(columns=list(columns), data=[list(r) for r in rows]), STEP: step}
            )
        )

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing yet: Lightning calls this after testing before training, too."""

    @rank_zero_only
    def close(self) -> None:
        """End the run of W&B, waiting a while for what is still to be sent."""
        if self._run is not None:
            self._guarded(lambda run: run.finish())
        if self.failures:
            log.warning("W&B: %d failures; metrics.csv has every metric", self.failures)

    def _guarded(self, act: Callable[[Any], Any]) -> None:
        """`act` on W&B's run; whatever it raises ends here, since W&B is only a spectator."""
        if self._given_up:
            return
        try:
            if self._run is None:
                self._run = self._begin()
            act(self._run)
        except Exception as error:
            self.failures += 1
            self._given_up = self._run is None
            if not self._said:
                log.warning("W&B: %s: %s. The run goes on.", type(error).__name__, error)
            self._said = True

    def _begin(self) -> Any:
        if not self.offline:
            try:
                return self._init("online")
            except Exception as error:  # no network, no account, another service's trouble
                self.failures += 1
                log.warning("W&B cannot be reached (%s): logging offline", error)
                (self.folder / ID_FILE).unlink()  # the attempt holds on to the id
        return self._init("offline")

    def _init(self, mode: Literal["online", "offline"]) -> Any:
        settings = wandb.Settings(
            init_timeout=SECONDS_TO_BEGIN, finish_timeout=SECONDS_TO_END, console="off", quiet=True
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            dir=str(self.folder),
            id=self._id(),
            resume="allow",
            mode=mode,
            settings=settings,
            reinit="create_new",
            **self._settings,
        )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        return run

    def _id(self) -> str:
        file = self.folder / ID_FILE
        if not file.exists():
            file.write_text(secrets.token_hex(4), encoding="utf-8")
        return file.read_text(encoding="utf-8").strip()
