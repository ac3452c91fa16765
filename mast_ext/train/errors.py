"""Errors of a run that the program reports in one sentence, without a traceback."""

import signal
from pathlib import Path

from mast_ext.checks import OptionError


class RunError(Exception):
    """A run cannot start or go on, for a reason that its user can act upon.

    Attributes:
        status: Exit status of the program.
    """

    status = 1


class SettingsError(OptionError):
    """A setting that does not fit the others, which is found when networks are built.

    Attributes:
        status: Exit status of the program, as for any wrong command line.
    """

    status = 2


class CheckpointError(RunError):
    """A checkpoint is missing, damaged, not ours, or of another run."""


class EndedByAnother(RunError):
    """This process ends because another one of the run failed, which reports why."""

    def __init__(self) -> None:
        super().__init__("another process of the run failed")


class ProcessKilled(RunError):
    """A process of the run was ended by a signal, and could not say so itself."""

    def __init__(self, rank: int, number: int) -> None:
        hint = ", as it happens where memory runs out" if number == signal.SIGKILL else ""
        name = signal.strsignal(number)
        super().__init__(f"rank {rank} was ended by signal {number} ({name}){hint}")
        self.status = 128 + number


class NonFiniteError(RunError):
    """The loss or its gradient became NaN or infinite.

    Attributes:
        step: The step (from 1) whose loss it was.
        indices: Sample indices of the batch in the source of images: of several processes, those
            of the processes whose loss it was.
        parameters: Their augmentation parameters, ``[V, B, P]`` as lists.
        late: Whether it has changed weights before it was seen, as is so on a GPU. No checkpoint
            has them.
    """

    def __init__(
        self,
        what: str,
        step: int,
        indices: list[int],
        parameters: list[list[list[float]]],
        *,
        late: bool = False,
    ) -> None:
        super().__init__(f"{what} at step {step}")
        self.what, self.step, self.late = what, step, late
        self.indices, self.parameters = indices, parameters


class Interrupted(RunError):
    """Training was stopped by a signal, after writing a checkpoint of the steps done.

    Attributes:
        signal: Number of the signal.
        step: Steps done; 0 before the first one of this process.
        run: The run directory to resume, when something was done that can be.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(number, step)
        self.signal, self.step, self.status = number, step, 128 + number
        self.run: Path | None = None

    def __str__(self) -> str:
        how = f": go on with mast-ext pretrain --resume {self.run}" if self.run else ""
        when = f"after step {self.step}" if self.step else "before its first step"
        return f"stopped by signal {self.signal} {when}{how}"
