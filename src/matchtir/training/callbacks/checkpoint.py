"""The checkpoint that an interrupted run goes on from."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from matchtir.utils.options import check_at_least
from matchtir.utils.processes import all_gather, all_reduce_max, rank
from matchtir.utils.run_folder import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT


class LastCheckpoint(Checkpoint):
    """Keeps `<folder>/last.ckpt`, from which a run resumes as if it had never stopped.

    Lightning's ModelCheckpoint saves before the iteration's metrics are logged and before the
    validation that may follow, and a run resumed from there does neither. Here a checkpoint
    becomes `last.ckpt` only once everything of its iteration is done: where validation follows, it
    is saved after that, so that it knows the best score so far; otherwise it is saved under another
    name, and renamed when the next iteration begins. The one before stays, as `previous.ckpt`.

    SIGTERM and Ctrl-C end the run after the iteration under way, which is saved: processes agree on
    it, so that one of them has to be asked; a second Ctrl-C ends it at once. Lightning's own
    handler would talk to the others from inside the signal, when they may be waiting for each other
    in another exchange. A process that the first one has started gets SIGTERM from it where it
    fails, and ends at once.

    Args:
        folder: of the checkpoints.
        every_n_iterations: between two of them; the last iteration always gets one.

    Raises:
        SIGTERMException: in every process, once the iteration is saved; its code is the signal.
        ValueError: the checkpoint has more iterations than the run is to have.
    """

    def __init__(self, folder: str, every_n_iterations: int) -> None:
        check_at_least(1, every_n_iterations=every_n_iterations)
        self.every_n_iterations = every_n_iterations
        self.path = Path(folder, LAST_CHECKPOINT)
        self._saved_iterations = -1
        self._signal = 0  # that asked this process to end
        self._ends = 0  # that asked some process to end: all of them do
        self._random: dict[str, Any] | None = None  # state to go on with

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Every checkpoint is written as this one."""
        trainer.strategy.checkpoint_io = CheckpointFiles()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a run whose iterations were all done go on where it is to have more of them."""
        loop, data = checkpoint["loops"]["fit_loop"], trainer.datamodule  # type: ignore[attr-defined]
        done = loop["epoch_loop.batch_progress"]
        if done["total"]["ready"] < len(data.train_dataloader()):
            done["is_last_batch"] = False
            loop["epoch_progress"]["current"] |= {"processed": 0, "completed": 0}

    def state_dict(self) -> dict[str, Any]:
        """The state of every global random generator, of every process."""
        return {"random": all_gather(random_state())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep it until training begins; other processes than there were begin anew."""
        states = dict(enumerate(state["random"]))
        self._random = states.get(rank())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take signals over from Lightning; what another process left unfinished is of no use."""
        length = trainer.num_training_batches * (trainer.max_epochs or 1)
        if _iterations(trainer) > length:
            raise ValueError(f"iterations={length}: {_iterations(trainer)} are done")
        if self._random is not None:
            set_random_state(self._random)
        if trainer.is_global_zero:
            for unfinished in (self._new, *self.path.parent.glob(f"*{UNFINISHED}")):
                _remove(unfinished)
        if threading.current_thread() is threading.main_thread():
            environment = getattr(trainer.strategy, "cluster_environment", None)
            started = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
            signal.signal(signal.SIGTERM, signal.SIG_DFL if started else self._end)
            signal.signal(signal.SIGINT, signal.SIG_IGN if started else self._end)

    def _end(self, number: int, _: Any) -> None:
        self._signal = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            print(
                "\nending after this iteration, which is saved; Ctrl-C again ends at once",
                file=sys.stderr,
            )

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """The iteration before this one is complete."""
        self._promote(trainer)
        if self._ends:
            raise SIGTERMException(self._ends)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save, unless validation comes first."""
        self._ends = all_reduce_max(self._signal, trainer.strategy.root_device)
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
            raise SIGTERMException(self._ends)

    def _is_due(self, trainer: Trainer) -> bool:
        return bool(self._ends) or _iterations(trainer) % self.every_n_iterations == 0

    @property
    def _new(self) -> Path:
        return self.path.with_name("new.ckpt")

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self._new, weights_only=False)
        self._saved_iterations = _iterations(trainer)

    def _promote(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or not self._new.exists():
            return
        if self.path.exists():
            previous = self.path.with_name(PREVIOUS_CHECKPOINT)
            if previous.is_dir():  # a sharded checkpoint, which cannot be replaced in one step
                _remove(previous)
            os.replace(self.path, previous)
        os.replace(self._new, self.path)


UNFINISHED = ".part"  # ending of a file that is being written


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and moves it there once all of it is on disk.

    Lightning would hold it in memory a second time, and write it to the system's temporary folder.

    Raises:
        OSError, RuntimeError: it cannot be written, as where no space is left. What was there
            before stays.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save; PyTorch's format has a checksum of every part."""
        unfinished = Path(f"{path}{UNFINISHED}")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # PyTorch's own is the latter
            unfinished.unlink(missing_ok=True)
            error.add_note(f"{path} could not be saved; once it can, ckpt_path=last goes on")
            raise
        os.replace(unfinished, path)


def random_state() -> dict[str, Any]:
    """The state of the global random generators of this process, as checkpoints may have it."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": (kind, keys.tolist(), *rest),  # type: ignore[union-attr]
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Let the global random generators of this process go on from `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


def _remove(checkpoint: Path) -> None:
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)


def _iterations(trainer: Trainer) -> int:
    """Iterations done, over all epochs and before a resumption too."""
    return trainer.fit_loop.total_batch_idx + 1


def _validation_follows(trainer: Trainer) -> bool:
    # Lightning has no public way to ask this.
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
