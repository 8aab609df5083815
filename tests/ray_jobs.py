"""What the tests of Ray make in worker processes, which import this file."""

from __future__ import annotations

import os
import time

from tiny_model import TinyModel


class SlowModel(TinyModel):
    """The tiny model, at the speed of a large one: there is time to kill its worker in the middle of a shard."""

    def forward(self, batch):
        time.sleep(0.3)
        return super().forward(batch)


class Squares:
    """A worker that squares numbers, and dies of some: of 13 always, of 5 only where no file says that it has."""

    def __init__(self, flag: str):
        self.flag, self.facts = flag, os.getpid()

    def __call__(self, job: int) -> int:
        if job == 13 or (job == 5 and not os.path.exists(self.flag)):
            open(self.flag, "w").close()
            os._exit(1)
        return job * job
