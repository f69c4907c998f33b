"""The checkpoint that an interrupted run goes on from."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from matchtir.utils.options import check_at_least
from matchtir.utils.processes import largest


class LastCheckpoint(Checkpoint):
    """Keeps `<folder>/last.ckpt`, from which a run resumes as if it had never stopped.

    Lightning's ModelCheckpoint saves before the iteration's metrics are logged and before the
    validation that may follow, and a run resumed from there does neither. Here a checkpoint
    becomes `last.ckpt` only once everything of its iteration is done: where validation follows, it
    is saved after that, so that it knows the best score so far; otherwise it is saved under another
    name, and renamed when the next iteration begins.

    SIGTERM ends the run after the iteration under way, which is saved: processes agree on it, so
    that one of them has to be asked. Lightning's own handler would talk to the others from inside
    the signal, when they may be waiting for each other in another exchange. A process that the
    first one has started gets SIGTERM from it where it fails, and ends at once.

    Args:
        folder: of the checkpoints.
        every_n_iterations: between two of them; the last iteration always gets one.

    Raises:
        SIGTERMException: in every process, once the iteration is saved.
    """

    def __init__(self, folder: str, every_n_iterations: int) -> None:
        check_at_least(1, every_n_iterations=every_n_iterations)
        self.every_n_iterations = every_n_iterations
        self.path = Path(folder) / "last.ckpt"
        self._saved_iterations = -1
        self._terminated = False  # this process was asked to end
        self._ends = False  # some process was: all of them end

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM over from Lightning; what another process left unfinished is of no use."""
        if trainer.is_global_zero and self._new.exists():
            _remove(self._new)
        if threading.current_thread() is threading.main_thread():
            environment = getattr(trainer.strategy, "cluster_environment", None)
            started = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
            signal.signal(signal.SIGTERM, signal.SIG_DFL if started else self._terminate)

    def _terminate(self, *_: Any) -> None:
        self._terminated = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """The iteration before this one is complete."""
        self._promote(trainer)
        if self._ends:
            raise SIGTERMException

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save, unless validation comes first."""
        self._ends = bool(largest(int(self._terminated), trainer.strategy.root_device))
        if self._is_due(trainer) and not _validation_follows(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where `on_train_batch_end` waited."""
        in_training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if in_training and self._is_due(trainer):
            self._save(trainer)
            self._promote(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run."""
        if self._saved_iterations != _iterations(trainer):
            self._save(trainer)
        self._promote(trainer)
        if self._ends:
            raise SIGTERMException

    def _is_due(self, trainer: Trainer) -> bool:
        return self._ends or _iterations(trainer) % self.every_n_iterations == 0

    @property
    def _new(self) -> Path:
        return self.path.with_name("new.ckpt")

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self._new)
        self._saved_iterations = _iterations(trainer)

    def _promote(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or not self._new.exists():
            return
        if self.path.is_dir():  # a sharded checkpoint, which cannot be replaced in one step
            _remove(self.path)
        os.replace(self._new, self.path)


def _remove(checkpoint: Path) -> None:
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink()


def _iterations(trainer: Trainer) -> int:
    """Iterations done, over all epochs and before a resumption too."""
    return trainer.fit_loop.total_batch_idx + 1


def _validation_follows(trainer: Trainer) -> bool:
    # Lightning has no public way to ask this.
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
