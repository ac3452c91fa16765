"""Starts the processes that train together, joins them in a group, and ends them together.

Each process is started from outside: by torchrun, by SLURM, or by `launch`, which uses torch's own
launcher. It reads its rank from its environment and joins the others (`process_group`).
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import ClusterEnvironment, SLURMEnvironment

from mast_ext.distributed import rank, world_size
from mast_ext.train.config import TrainConfig
from mast_ext.train.errors import EndedByAnother, ProcessKilled, RunError, SettingsError
from mast_ext.train.signals import handlers_restored

LAUNCHER_SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    signal.SIGUSR1,  # which clusters announce a job's end by
)
"""Torch's launcher passes these on to the processes. It leaves its handlers set."""


@dataclass(frozen=True)
class ProcessRank:
    """A process among those that train together.

    Attributes:
        rank: Its number among all.
        world_size: How many there are.
        local_rank: Its number among those on its machine.
    """

    rank: int
    world_size: int
    local_rank: int


def launched_rank() -> ProcessRank | None:
    """This process's rank by the variables of torchrun or SLURM; None when neither started it.

    Sets MASTER_ADDR and MASTER_PORT, where the processes meet, if it was SLURM, which does not.
    """
    find = os.environ.get
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        local = find("LOCAL_RANK", "0")
        return ProcessRank(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(local))
    # A step is what srun starts; the script of a batch job, or a shell, is by itself.
    if "SLURM_STEP_ID" in os.environ and int(find("SLURM_STEP_NUM_TASKS", "1")) > 1:
        size = int(os.environ["SLURM_STEP_NUM_TASKS"])
        nodes = find("SLURM_STEP_NODELIST", "localhost")
        os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
        job = int(find("SLURM_JOB_ID", "0"))
        os.environ.setdefault("MASTER_PORT", str(15000 + job % 10000))
        return ProcessRank(int(os.environ["SLURM_PROCID"]), size, int(os.environ["SLURM_LOCALID"]))
    return None


@contextmanager
def process_group(accelerator: str) -> Iterator[None]:
    """Joins the processes that torchrun or SLURM started.

    Does nothing for a process by itself, or one that has joined already.
    When one process fails, the others fail at their next collective. The first one to fail raises
    its error; the others raise `EndedByAnother`, since the user needs to read one message only.

    Args:
        accelerator: ``auto``, ``cpu`` or ``cuda``: gradients are sent by gloo, or by NCCL between
            GPUs. A process takes the GPU with its local rank as index, modulo the number of GPUs
            that it sees (with SLURM's ``--gpus-per-task=1`` it sees one).

    Raises:
        RunError: There is no GPU for this process, the others do not answer, or one of them
            vanished without a word.
        EndedByAnother: Another process failed.
    """
    own = launched_rank()
    if own is not None and own.world_size > 1 and not dist.is_available():
        raise RunError("training by several processes needs a build of torch with distributed")
    if own is None or own.world_size == 1 or dist.is_initialized():
        yield
        return
    store = _join(own, accelerator)
    try:
        yield
        dist.barrier()
    except Exception as error:
        # The group is not destroyed: others may wait in it, and fail when this process ends.
        if not _is_first(store):
            raise EndedByAnother() from error
        if _is_of_connection(error):
            raise RunError(
                f"rank {own.rank}: another process of the run died or is late"
            ) from error
        raise
    dist.destroy_process_group()


def _join(own: ProcessRank, accelerator: str) -> "dist.Store":
    backend, gpu = "gloo", "none"
    if accelerator != "cpu" and torch.cuda.is_available():
        # A launcher may show each process all GPUs of the machine, or its own ones only.
        torch.cuda.set_device(own.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", own.rank, own.world_size)))
        if accelerator != "cpu":
            _require_own_gpus(dist.PrefixStore("mast_ext/gpus", store), own, gpu)
        group = dist.PrefixStore("mast_ext/group", store)
        dist.init_process_group(backend, store=group, rank=own.rank, world_size=own.world_size)
    except dist.DistError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RunError(
            f"rank {own.rank} of {own.world_size} does not meet the others at {where} (MASTER_ADDR,"
            f" MASTER_PORT): {error}"
        ) from error
    return dist.PrefixStore("mast_ext", store)


def _require_own_gpus(store: "dist.Store", own: ProcessRank, gpu: str) -> None:
    """Raises a RunError in every process unless each has a GPU of its own, or none has one.

    Args:
        store: Through which they tell each other.
        own: This process.
        gpu: The UUID of its GPU; "none".
    """
    store.set(str(own.rank), gpu)
    gpus = [store.get(str(each)).decode() for each in range(own.world_size)]
    store.set(f"{own.rank} has read", "")
    if own.rank == 0:  # rank 0 may hold the store, and must not end before all have read
        store.wait([f"{each} has read" for each in range(own.world_size)])
    without = [str(each) for each, gpu in enumerate(gpus) if gpu == "none"]
    if without:
        if len(without) == own.world_size:
            return
        raise RunError(
            f"every process needs a GPU of its own, but PyTorch can use none on rank"
            f" {', '.join(without)}; `mast-ext doctor` there says more"
        )
    for second, gpu in enumerate(gpus):
        first = gpus.index(gpu)
        if first < second:
            raise RunError(
                f"every process needs a GPU of its own, but ranks {first} and {second} have the"
                f" same one; rank {own.rank} sees {torch.cuda.device_count()}"
            )


def _is_first(store: "dist.Store") -> bool:
    """Whether this process is the first one to fail."""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # the store went down with the process that held it
        return True


def _is_of_connection(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and "gloo" in str(error)
        ):
            return True
        error = error.__cause__
    return False


class ExternalLaunch(ClusterEnvironment):
    """Tells Lightning that processes were started from outside, each on a node of its own.

    Then it does not need to know which of them share a machine, and uses the existing group. A
    process by itself tells so, too: in a batch job Lightning would want one for every task, and
    answer the scheduler's signals with checkpoints of its own and a new start of the job.
    """

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        return int(os.environ["MASTER_PORT"])

    @staticmethod
    def detect() -> bool:
        return world_size() > 1

    def world_size(self) -> int:
        return world_size()

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return rank()

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return rank()


def resolve_device(accelerator: str) -> torch.device:
    """The device of ``auto`` (a GPU when there is one), ``cpu`` or ``cuda``.

    Raises:
        ValueError: ``cuda`` without a GPU that torch can use.
    """
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "accelerator cuda needs a GPU that torch can use (mast-ext doctor says why)"
        )
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(accelerator)


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_devices(train: TrainConfig) -> str:
    """Makes sure that ``train.devices`` processes can train here.

    Returns:
        A sentence, if they are more than the cores that they train on; else "".

    Raises:
        SettingsError: They are more than the GPUs, or the batch does not divide.
    """
    train.share_of_batch(train.devices)
    if train.accelerator != "cpu" and torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if train.devices > gpus:
            raise SettingsError(
                f"train.devices is {train.devices}, but there are {gpus} GPUs here"
                " (train.accelerator cpu takes none)"
            )
        return ""
    cores = usable_cores()
    if train.devices <= cores:
        return ""
    return f"train.devices is {train.devices}, more than the {cores} CPU cores that they share"


def launch(module: str, arguments: Sequence[str], count: int) -> int:
    """Runs ``python -m module arguments`` as ``count`` processes that train together.

    Args:
        module: Name of the module.
        arguments: Its command line.
        count: How many processes.

    Returns:
        0 when all succeeded, else the status of the first one that did not, which has reported what
        went wrong; 128 + n after signal n ended this process.

    Raises:
        ProcessKilled: A signal ended one of them first.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=",".join(each.name for each in LAUNCHER_SIGNALS),
    )
    logging.disable()  # the launcher's account of the failure; ours has been given
    try:
        with handlers_restored(LAUNCHER_SIGNALS):
            elastic_launch(config, sys.executable)("-m", module, *arguments)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise ProcessKilled(failure.local_rank, -failure.exitcode) from None
        return failure.exitcode
    finally:
        logging.disable(logging.NOTSET)
    return 0
