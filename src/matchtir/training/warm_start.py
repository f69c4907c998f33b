"""Starting weights by supervised fine-tuning, made once and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer
from safetensors.torch import load_model, save_model

import matchtir
from matchtir.policy.weights import whole
from matchtir.training.base import PolicyModule
from matchtir.utils.processes import rank, wait_for_all

log = logging.getLogger(__name__)

# What the weights depend on besides the settings.
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "lightning")
SOURCES = (
    *(
        "types.py",
        "policy/*",
        "policy/tiny/*",
        "tasks/gold.py",
        "tasks/synthetic/*",
        "tasks/custom/*",
        "tools/formats.py",
    ),
    *("rollout/renderer.py", "rollout/chat_format.py", "rollout/demonstration.py"),
    "training/*.py",
)


def warm_start(
    module: PolicyModule,
    datamodule: LightningDataModule,
    make_trainer: Callable[[], Trainer],
    settings: Mapping[str, Any],
    cache_dir: str | Path,
) -> Path:
    """Give the module's policy the weights that fitting gives, from the cache if they are there.

    Args:
        module: a module for supervised fine-tuning, around the policy.
        datamodule: the tasks of the warm start.
        make_trainer: called only where the weights have to be made.
        settings: everything in the configuration that determines the weights.
        cache_dir: one file per fingerprint of settings, code and libraries.
    """
    file = Path(cache_dir, f"{fingerprint(settings)}.safetensors")
    if not file.exists():
        log.info("warm start: no weights in %s yet, training them", file)
        policy = module.policy
        module.policy = deepcopy(policy)  # the trainer may share out its weights over processes
        make_trainer().fit(module, datamodule=datamodule)
        policy.load_state_dict({n: whole(value) for n, value in module.policy.state_dict().items()})
        module.policy = policy
        if rank() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(f".{os.getpid()}")
            save_model(policy, str(unfinished))
            os.replace(unfinished, file)  # another process sees all of it or nothing
        wait_for_all()
    else:
        log.info("warm start: weights from %s", file)
    load_model(module.policy, str(file))
    return file


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A hash of the settings, the files that they name, the code that reads them, its libraries."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in sorted(_files_in(settings)):
        digest.update(file.read_bytes())
    root = Path(matchtir.__file__).parent
    for pattern in SOURCES:
        for path in sorted(root.glob(pattern)):
            if path.is_file():
                digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library} {metadata.version(library)}".encode())
    return digest.hexdigest()[:16]


def _files_in(settings: Any) -> set[Path]:
    """The files that a setting names, as `file` or `file:name`: tasks and tools."""
    if isinstance(settings, Mapping):
        settings = list(settings.values())
    if isinstance(settings, list | tuple):
        return set().union(*map(_files_in, settings))
    if not isinstance(settings, str):
        return set()
    names = (settings, settings.partition(":")[0])
    return {Path(name) for name in names if os.path.isfile(name)}
