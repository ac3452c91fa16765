"""How processes get a GPU each, and talk on the host whatever the group is that they are in."""

import os
import socket
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mast_ext.distributed import (
    all_gather_numbers,
    all_gather_object,
    host_group,
    run_on_first_rank,
)
from mast_ext.train.errors import RunError
from mast_ext.train.launch import process_group

pytestmark = pytest.mark.distributed

PROCESSES = 2
TIMEOUT = timedelta(minutes=3)

# What every process sees: the GPUs' UUIDs, and the one it is to take.
LAUNCHERS = {
    "all of the machine": (("a", "b"), ("a", "b")),
    "each its own": (("a",), ("b",)),
    "each two of its own": (("a", "b"), ("c", "d")),
}
TAKEN = {
    "all of the machine": [0, 1],
    "each its own": [0, 0],
    "each two of its own": [0, 1],
}


def pretend_gpus(patch, uuids):
    """As many GPUs as UUIDs, with gloo in the place of NCCL, which needs real ones."""
    taken, groups = [], []
    create = dist.init_process_group

    def init(backend, **options):
        groups.append(backend)
        create("gloo", **options)

    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: len(uuids))
    patch.setattr(torch.cuda, "set_device", taken.append)
    patch.setattr(torch.cuda, "current_device", lambda: taken[-1])
    patch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=uuids[index])
    )
    patch.setattr(dist, "init_process_group", init)
    return taken, groups


def join_with_gpus(rank, port, uuids):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(PROCESSES),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with pytest.MonkeyPatch.context() as patch:
        taken, groups = pretend_gpus(patch, uuids)
        try:
            with process_group("cuda"):
                pass
        except RunError as error:
            return str(error)
    return taken, groups


def talk(rank, folder):
    """In a group that, like one of NCCL, has nothing for tensors on the CPU."""
    dist.init_process_group(
        "cuda:gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=PROCESSES,
        timeout=TIMEOUT,
    )
    side = host_group()
    found = {
        "numbers": all_gather_numbers([float(rank), 0.5]),
        "values": all_gather_object({"rank": rank}),
        "first": run_on_first_rank(lambda: f"said by {rank}"),
        "one side group": host_group() is side is not None,
        "timeout": side._get_backend(torch.device("cpu")).options._timeout == TIMEOUT,
    }
    dist.destroy_process_group()
    found["ended"] = pytest.raises(ValueError, dist.get_backend, side) is not None
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/other", rank=rank, world_size=PROCESSES
    )
    found["not needed"] = host_group() is None
    dist.destroy_process_group()
    return found


def run(rank, folder, ports):
    torch.set_num_threads(1)
    found = {
        name: join_with_gpus(rank, ports[name], seen[rank]) for name, seen in LAUNCHERS.items()
    }
    found["shared"] = join_with_gpus(rank, ports["shared"], ("a",))
    found["talk"] = talk(rank, folder)
    torch.save(found, f"{folder}/{rank}.pt")


def free_ports(names):
    probes = [socket.socket() for _ in names]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = {name: probe.getsockname()[1] for name, probe in zip(names, probes, strict=True)}
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What every process found."""
    folder = tmp_path_factory.mktemp("group")
    mp.spawn(run, (str(folder), free_ports([*LAUNCHERS, "shared"])), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_process_takes_a_gpu_that_it_sees(launcher, processes):
    for found, index in zip(processes, TAKEN[launcher], strict=True):
        assert found[launcher] == ([index], ["cpu:gloo,cuda:nccl"])


def test_two_processes_on_one_gpu_are_an_error_in_both(processes):
    for rank, found in enumerate(processes):
        assert found["shared"] == (
            "every process needs a GPU of its own, but ranks 0 and 1 have the same one; rank"
            f" {rank} sees 1"
        )


def test_hosts_talk_beside_a_group_of_gpus(processes):
    for found in processes:
        assert found["talk"] == {
            "numbers": [[0.0, 0.5], [1.0, 0.5]],
            "values": [{"rank": 0}, {"rank": 1}],
            "first": "said by 0",
            "one side group": True,
            "timeout": True,
            "ended": True,
            "not needed": True,
        }
