"""Imported by a Python process that has this folder on its path, as it starts.

Makes a training pause as the step numbered PAUSE_AT (from 0) begins, until a signal ends it: so a
test decides after which step a signal comes. A file ``paused-RANK`` says that it pauses.
"""

import os
import time
from pathlib import Path

if "PAUSE_AT" in os.environ:
    from mast_ext.train.loop.checkpoints import Checkpoints
    from mast_ext.train.loop.module import PretrainModule

    def pause(module, batch, batch_idx):
        if module.trainer.global_step != int(os.environ["PAUSE_AT"]):
            return
        Path(f"paused-{os.environ.get('RANK', '0')}").touch()
        (saving,) = (c for c in module.trainer.callbacks if isinstance(c, Checkpoints))
        while not saving.received:
            time.sleep(0.005)

    setattr(PretrainModule, "on_train_batch_start", pause)  # noqa: B010  mypy sees a method there
