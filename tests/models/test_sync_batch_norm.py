"""Synchronized batch norm on the CPU (over two processes: tests/train/test_distributed.py)."""

import copy

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from mast_ext.models import sync_batch_norm

IMAGES, ROWS = (6, 5, 4, 4), (6, 5)

# layer, shape of its input
LAYERS = {
    "rows": (lambda: nn.BatchNorm1d(5), ROWS),
    "sequences": (lambda: nn.BatchNorm1d(5), (6, 5, 3)),
    "images": (lambda: nn.BatchNorm2d(5), IMAGES),
    "not_affine": (lambda: nn.BatchNorm1d(5, affine=False), ROWS),
    "no_statistics": (lambda: nn.BatchNorm2d(5, track_running_stats=False), IMAGES),
    "average_of_all": (lambda: nn.BatchNorm2d(5, momentum=None), IMAGES),
    "timm": (lambda: BatchNormAct2d(5), IMAGES),
}


@pytest.fixture
def group():
    """A process group of one: its sums over processes are those of its own batch."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make(name, seed=0):
    torch.manual_seed(seed)
    layer, shape = LAYERS[name]
    network = nn.Sequential(layer())
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return network, 2 * torch.randn(shape) + 3


@pytest.mark.parametrize("name", LAYERS)
def test_of_one_process_is_batch_norm(name, group):
    plain, batch = make(name)
    ours = sync_batch_norm(copy.deepcopy(plain), "cpu")
    assert ours[0].state_dict().keys() == plain[0].state_dict().keys()
    for step in range(2):
        found, want = (batch.clone().add(step).requires_grad_() for _ in range(2))
        for network, x in ((ours, found), (plain, want)):
            (network(x) * torch.linspace(0, 1, x.numel()).view_as(x)).square().sum().backward()
        torch.testing.assert_close(ours(batch), plain(batch))
        torch.testing.assert_close(found.grad, want.grad, rtol=1e-4, atol=1e-4)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    ours.eval(), plain.eval()
    torch.testing.assert_close(ours(batch), plain(batch))


@pytest.mark.parametrize("name", LAYERS)
def test_outside_of_distributed_training_it_is_the_same_bits(name):
    plain, batch = make(name)
    ours = sync_batch_norm(copy.deepcopy(plain), "cpu")
    assert torch.equal(ours(batch), plain(batch))
    assert copy.deepcopy(ours)(batch).shape == batch.shape


def test_half_precision_stays(group):
    plain, batch = make("images")
    ours = sync_batch_norm(copy.deepcopy(plain), "cpu")
    found, want = ours(batch.bfloat16()), plain(batch)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), want, rtol=0.02, atol=0.02)


def test_on_a_gpu_it_is_torchs():
    network = sync_batch_norm(nn.Sequential(nn.BatchNorm2d(5), BatchNormAct2d(5)), "cuda")
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in network)
