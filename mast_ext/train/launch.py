"""The processes that train together: how they start, what they agree on, how they end.

Every process is started from outside (by torchrun, by SLURM, or by `launch`, which uses torch's own
launcher) and finds its place among the others in its environment. What they say to each other here
are numbers on the CPU, by gloo; gradients go their own way.
"""

import logging
import math
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import ClusterEnvironment, SLURMEnvironment

from mast_ext.distributed import all_gather, host_group, rank, world_size
from mast_ext.train.config import TrainConfig
from mast_ext.train.errors import EndedByAnother, RunError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """A process among those that train together.

    Attributes:
        rank: Its number among all.
        size: How many there are.
        local_rank: Its number among those on its machine.
    """

    rank: int
    size: int
    local_rank: int


def find_place() -> Place | None:
    """This process's place by torchrun's variables or SLURM's; None for one by itself.

    To SLURM's it adds where the processes meet, which torchrun's say.
    """
    find = os.environ.get
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        local = find("LOCAL_RANK", "0")
        return Place(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(local))
    # A step is what srun starts; the script of a batch job, or a shell, is by itself.
    if "SLURM_STEP_ID" in os.environ and int(find("SLURM_STEP_NUM_TASKS", "1")) > 1:
        size = int(os.environ["SLURM_STEP_NUM_TASKS"])
        nodes = find("SLURM_STEP_NODELIST", "localhost")
        os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
        job = int(find("SLURM_JOB_ID", "0"))
        os.environ.setdefault("MASTER_PORT", str(15000 + job % 10000))
        return Place(int(os.environ["SLURM_PROCID"]), size, int(os.environ["SLURM_LOCALID"]))
    return None


@contextmanager
def joined(accelerator: str) -> Iterator[None]:
    """Makes this process one of those that train together, unless it is by itself or is already.

    When one of them fails, the others do, too, at the next thing they have to do together. The
    first one raises its error; the others raise `EndedByAnother`, as there is nothing to add.

    Args:
        accelerator: ``auto``, ``cpu`` or ``cuda``: gradients are sent by gloo, or by NCCL between
            GPUs. Of those that a process sees it takes that of its local rank, counted around:
            where it sees but its own (SLURM's ``--gpus-per-task=1``), that one.

    Raises:
        RunError: There is no GPU for this process, the others do not answer, or one of them
            vanished without a word.
        EndedByAnother: Another process failed.
    """
    place = find_place()
    if place is not None and place.size > 1 and not dist.is_available():
        raise RunError("training by several processes needs a build of torch with distributed")
    if place is None or place.size == 1 or dist.is_initialized():
        yield
        return
    store = _join(place, accelerator)
    try:
        yield
        dist.barrier()
    except Exception as error:
        # No goodbye to the group: others may be waiting in it, and learn of the end by this one's.
        if not _is_first(store):
            raise EndedByAnother() from error
        if _is_of_connection(error):
            raise RunError(
                f"rank {place.rank}: another process of the run died or is late"
            ) from error
        raise
    dist.destroy_process_group()


def _join(place: Place, accelerator: str) -> "dist.Store":
    backend, gpu = "gloo", "none"
    if accelerator != "cpu" and torch.cuda.is_available():
        # Of those that it sees: a launcher may show each process all of the machine's, or its own.
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", place.rank, place.size)))
        if accelerator != "cpu":
            _require_own_gpus(dist.PrefixStore("mast_ext/gpus", store), place, gpu)
        group = dist.PrefixStore("mast_ext/group", store)
        dist.init_process_group(backend, store=group, rank=place.rank, world_size=place.size)
    except dist.DistError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RunError(
            f"rank {place.rank} of {place.size} does not meet the others at {where} (MASTER_ADDR,"
            f" MASTER_PORT): {error}"
        ) from error
    return dist.PrefixStore("mast_ext", store)


def _require_own_gpus(store: "dist.Store", place: Place, own: str) -> None:
    """Raises a RunError in every process when two of them have taken the same GPU, or only some
    have one.

    Args:
        store: Where they tell each other.
        place: This process's.
        own: The UUID of its GPU; "none".
    """
    store.set(str(place.rank), own)
    gpus = [store.get(str(each)).decode() for each in range(place.size)]
    store.set(f"{place.rank} has read", "")
    if place.rank == 0:  # which may be the one with the store: it does not leave before the others
        store.wait([f"{each} has read" for each in range(place.size)])
    without = [str(each) for each, gpu in enumerate(gpus) if gpu == "none"]
    if without:
        if len(without) == place.size:
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
                f" same one; rank {place.rank} sees {torch.cuda.device_count()}"
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


def by_first(function: Callable[[], Result]) -> Result:
    """What a function gives in the first process, where alone it is called; or raises there."""
    if world_size() == 1:
        return function()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = function()
        except (RunError, OSError, ValueError) as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0, group=host_group())
    if found[1] is not None:
        raise found[1]
    return found[0]


def of_all(value: Result) -> list[Result]:
    """A picklable value of every process, in the order of ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, group=host_group())
    return found


def numbers_of_all(numbers: Sequence[float]) -> list[list[float]]:
    """As many numbers of every process, in the order of ranks."""
    if world_size() == 1:
        return [list(numbers)]
    own = torch.tensor([list(numbers)], dtype=torch.float64)
    return all_gather(own, group=host_group()).tolist()


def mean_of_numbers(rows: Sequence[Sequence[float]]) -> list[float]:
    """The mean of every column over those rows that have a number there; NaN if none has."""
    columns = ([x for x in column if not math.isnan(x)] for column in zip(*rows, strict=True))
    return [sum(column) / len(column) if column else math.nan for column in columns]


class OneOfMany(ClusterEnvironment):
    """What Lightning is told: every process is a machine with one device, started from outside.

    So it need not know which of them share a machine, and takes the process group that there is.
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


def require_devices(train: TrainConfig) -> None:
    """Raises a ValueError unless ``train.devices`` processes can train here."""
    share_of_batch(train, train.devices)
    gpus = torch.cuda.device_count()
    if train.accelerator != "cpu" and torch.cuda.is_available() and train.devices > gpus:
        raise ValueError(
            f"train.devices is {train.devices}, but there are {gpus} GPUs here"
            " (train.accelerator cpu takes none)"
        )


def share_of_batch(train: TrainConfig, count: int) -> int:
    """Images per step of each of ``count`` processes.

    Raises:
        ValueError: The batch does not divide into equal parts.
    """
    parts = count * train.accumulate
    if train.batch_size % parts:
        raise ValueError(
            f"train.batch_size {train.batch_size} does not divide into {parts} equal parts"
            f" (processes: {count}, train.accumulate: {train.accumulate})"
        )
    return train.batch_size // count


def launch(module: str, arguments: Sequence[str], count: int) -> int:
    """Runs ``python -m module arguments`` as ``count`` processes of this machine that train
    together.

    Args:
        module: Name of the module.
        arguments: Its command line.
        count: How many processes.

    Returns:
        0 when all succeeded, else the status of the first one that did not (128 + n for one that
        signal n ended, here or there). What went wrong is told by it.
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
    )
    logging.disable()  # the launcher's account of the failure; ours has been given
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    finally:
        logging.disable(logging.NOTSET)
    return 0
