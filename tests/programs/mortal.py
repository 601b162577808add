"""A DLRM whose rank 1, in the first life of its process, dies by SIGKILL in the forward of a step that MORTAL_STEP names."""

from __future__ import annotations

import os
import signal

from torch import Tensor

from distrec.models.dlrm import DLRM
from distrec.models.inputs import Embedded


class Mortal(DLRM):
    Params = DLRM.Params
    steps = 0

    def forward(self, inputs: Embedded) -> Tensor:
        self.steps += self.training
        life = (os.environ.get("RANK"), os.environ.get("TORCHELASTIC_RESTART_COUNT"))
        if life == ("1", "0") and self.steps == int(os.environ.get("MORTAL_STEP", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(inputs)
