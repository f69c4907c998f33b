"""Runs of src/train.py, each in a process of its own, in which something goes wrong at a moment.

The processes are forked from one that has imported everything, which takes longer than such a run.
"""

import io
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import train
from matchtir.rollout.episode import Episode
from matchtir.training.module import PolicyGradientModule
from matchtir.training.optim import Muon
from tests.scale.whole_runs import SMALL_MODEL, SMALL_RUN, composed, forked, rows, told
from tests.training.token_reward import PAID

COMMAND = (
    *(*SMALL_RUN, *SMALL_MODEL, "model.layers=1", PAID, "iterations=5", "mini_batches=2"),
    *("optimizer=muon_adamw", "optimizer.decay=constant"),
    "callbacks.last_checkpoint.every_n_iterations=2",
    *("data.sizes={train: 8, validation: 2, test: 2}", "trainer.val_check_interval=3"),
    "module._target_=tests.faults.faulty_runs.RandomModule",
)
PHASES = {
    "rollout": (Episode, "step"),  # of validation and test, too
    "credit": (PolicyGradientModule, "score"),
    "backward": (torch.Tensor, "backward"),
    "step": (Muon, "step"),  # AdamW's is still to come
    "save": (torch, "save"),
    "rename": (os, "replace"),  # of any file that must not be seen half written
}
COUNTS_FILE = "counts.json"


class RandomModule(PolicyGradientModule):
    """Depends on every global random generator, as a layer with dropout would."""

    def loss(self, inputs):
        noise = torch.rand(()).item() + np.random.random() + random.random()
        return super().loss(replace(inputs, advantages=inputs.advantages * noise))


class Moment(NamedTuple):
    """What happens when a phase has been entered so many times."""

    phase: str
    number: int
    fault: str = "kill"


def run(folder, *overrides, moment=None):
    """Exit status of a run, negative for a signal, and what it said."""
    process = start(folder, *overrides, moment=moment)
    process.join(timeout=300)
    said = Path(f"{folder}.log").read_text(encoding="utf-8")
    assert process.exitcode is not None, said
    return process.exitcode, said


def start(folder, *overrides, moment=None):
    """A run that has begun."""
    return forked(_play, folder, overrides, moment)


def outcome(folder):
    """All that must be the same of two runs, whatever befell them."""
    last, best = (
        torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for name in ("last", "best")
    )
    states = {name: last[name] for name in ("state_dict", "optimizer_states", "lr_schedulers")}
    traces = {
        file.name: [
            (record["task"], [turn["text"] for turn in record["turns"]], record["total"])
            for record in map(json.loads, file.read_text(encoding="utf-8").splitlines())
        ]
        for file in sorted(folder.glob("traces/*.jsonl"))
    }
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    del result["seconds"]
    states["random"] = last["callbacks"]["LastCheckpoint"]["random"]
    states["best"] = best["state_dict"], best["global_step"]
    return _plain({**states, "traces": traces, "result": result, "metrics": rows(folder)})


def _plain(value):
    """With tensors as their bytes, which can be compared."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def _play(folder, overrides, moment):
    """The process of a run."""
    told(folder)
    counts = Counter()
    for phase, (owner, name) in PHASES.items():
        setattr(owner, name, _watched(getattr(owner, name), phase, counts, moment, folder))
    try:
        train.run(composed(folder, *COMMAND, *overrides))
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    (folder / COUNTS_FILE).write_text(json.dumps(counts), encoding="utf-8")


def _watched(act, phase, counts, moment, folder):
    def watched(*args, **kwargs):
        counts[phase] += 1
        if moment is None or (phase, counts[phase]) != (moment.phase, moment.number):
            return act(*args, **kwargs)
        if phase == "save":  # begun, not done
            whole = io.BytesIO()
            act(args[0], whole)
            args[1].write(whole.getvalue()[: whole.tell() // 2])
            args[1].flush()
            FAULTS[moment.fault](folder)
            args[1].seek(0)
            return act(*args, **kwargs)
        done = act(*args, **kwargs)
        FAULTS[moment.fault](folder)
        return done

    return watched


def _wait(folder):
    (folder / "waits").touch()
    time.sleep(300)


def _signalled(*signals):
    return lambda _: [os.kill(os.getpid(), each) for each in signals]


FAULTS = {
    "kill": _signalled(signal.SIGKILL),
    "interrupt": _signalled(signal.SIGINT),
    "terminate": _signalled(signal.SIGTERM),
    "interrupt twice": _signalled(signal.SIGINT, signal.SIGINT),
    "full disk": lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    "wait": _wait,
}
