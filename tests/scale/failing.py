"""A process of a run that fails, where the environment says so."""

import os
import signal
import time

from matchtir.training.module import PolicyGradientModule

FAILS = "TEST_FAILS"  # "<rank>:<iteration>", or "<rank>:<iteration>/hangs" or ".../terminated"


class FailingModule(PolicyGradientModule):
    """Raises in one process and one iteration, where the environment says so."""

    def score(self, groups):
        where, _, how = os.environ.get(FAILS, "").partition("/")
        if where == f"{self.global_rank}:{self.iteration}":
            if how == "hangs":
                time.sleep(600)
            if how != "terminated":
                raise RuntimeError("this process fails")
            os.kill(os.getpid(), signal.SIGTERM)
        return super().score(groups)
