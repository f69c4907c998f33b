"""Says which episodes hang, and in which stage."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

NAMED = 5  # episodes that a warning names; the others are counted


class Watchdog:
    """Warns of stages that take longer than `patience_s`, again after as long.

    It looks from a thread of its own: what hangs may be the event loop itself. It ends nothing;
    `EpisodeLimits.max_seconds` does.
    """

    def __init__(self, patience_s: float) -> None:
        if patience_s <= 0:
            raise ValueError(f"patience_s must be above 0, got {patience_s}")
        self.patience_s = patience_s
        self._entered: dict[str, tuple[str, float]] = {}  # session -> stage, since when

    @contextmanager
    def stage(self, session: str, name: str) -> Iterator[None]:
        """The episode `session` is in the stage `name`."""
        self._entered[session] = (name, time.monotonic())
        try:
            yield
        finally:
            del self._entered[session]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look for as long."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(self.patience_s):
            late = defaultdict(list)
            for session, (stage, since) in self._entered.copy().items():
                if time.monotonic() - since >= self.patience_s:
                    late[stage].append(session)
            for stage, sessions in late.items():
                others = f" and {len(sessions) - NAMED} more" if len(sessions) > NAMED else ""
                logger.warning(
                    "in stage %r for more than %g s: %s%s",
                    stage,
                    self.patience_s,
                    ", ".join(sessions[:NAMED]),
                    others,
                )
