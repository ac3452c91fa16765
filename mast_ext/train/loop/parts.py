"""What the loop tells a profiler of Lightning's: which part of a step begins and ends."""

from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.profilers import Profiler


def part(trainer: Trainer, name: str) -> AbstractContextManager[Any]:
    """A context in which a part of a step is done; it costs nothing where nobody measures.

    Parts are ``select_views``, ``encode``, ``loss``, ``check_gradient``, ``update_weights``,
    ``update_teacher``, ``measure_ranks``, and those of `mast_ext.augment.ViewLoader.on`. Lightning
    itself tells the others (see `mast_ext.train.loop.step_times`).
    """
    profiler: Profiler = trainer.profiler  # type: ignore[attr-defined]
    return profiler.profile(name)
