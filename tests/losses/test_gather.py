"""Distributed training equals training in one process on the global batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from mast_ext import losses
from mast_ext.losses.gather import gather_batch

BATCH, FEATURES, DIM, VIEWS = 6, 5, 16, 3  # a process's batch; the Gram form from two of them on
SUBSPACES = 3
OBJECTIVES = ["vicreg", "vicreg_positions", "barlow", "negative_cosine", "mast", "mast_uncertain"]


class Model(nn.Module):
    """A projection and an objective, so that the gradient of both's parameters is compared."""

    def __init__(self, objective):
        super().__init__()
        torch.manual_seed(0)
        self.objective = objective
        self.projection = nn.Linear(FEATURES, DIM, bias=False)
        self.log_variance = nn.Linear(FEATURES, SUBSPACES, bias=False)
        masks = losses.SubspaceMasks(SUBSPACES, DIM)
        uncertainty = "subspace" if objective == "mast_uncertain" else "none"
        self.loss = {
            "vicreg": losses.VICRegLoss(gather_distributed=True),
            "vicreg_positions": losses.VICRegLoss(gather_distributed=True),
            "barlow": losses.BarlowTwinsLoss(0.1, gather_distributed=True),
            "negative_cosine": losses.NegativeCosineSimilarity(),
        }.get(objective) or losses.MASTLoss(
            masks, sparsity=1.0, uncertainty=uncertainty, gather_distributed=True
        )

    def forward(self, images, pairs):
        views = self.projection(images)
        if self.objective == "mast":
            return self.loss(views, pairs).loss
        if self.objective == "mast_uncertain":
            return self.loss(views, pairs, self.log_variance(images)).loss
        if self.objective == "vicreg_positions":
            return self.loss(*(view.unflatten(1, (4, 4)) for view in views[:2]))
        return self.loss(views[0], views[1])


def global_batch(world_size):
    """Images, and pairs that leave some processes without some subspaces."""
    generator = torch.Generator().manual_seed(1)
    batch = world_size * BATCH
    images = torch.randn(VIEWS, batch, FEATURES, generator=generator)
    pairs = torch.full((VIEWS, VIEWS, batch), -1)
    pairs[0, 1] = torch.arange(batch) // BATCH % 2
    pairs[0, 2, ::4] = 1
    return images, pairs


def train(objective, images, pairs, average):
    """The loss, and the gradients as DistributedDataParallel averages them."""
    model = Model(objective)
    loss = model(images, pairs)
    loss.backward()
    results = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    return [average(result) for result in results]


def run_process(rank, world_size, directory):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world_size
    )

    def average(x):
        dist.all_reduce(x)
        return x / world_size

    images, pairs = global_batch(world_size)
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    results = {
        objective: train(objective, images[:, mine], pairs[..., mine], average)
        for objective in OBJECTIVES
    }
    gathered = gather_batch(torch.full((2, 1), float(rank), dtype=torch.bfloat16), 1)
    if rank == 0:
        torch.save((results, gathered), f"{directory}/results.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def distributed(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("gloo")
    mp.spawn(run_process, (request.param, str(directory)), nprocs=request.param)
    return request.param, *torch.load(directory / "results.pt")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equals_one_process(objective, distributed):
    world_size, results, _ = distributed
    want = train(objective, *global_batch(world_size), average=lambda x: x)
    assert len(results[objective]) == len(want)
    for mine, truth in zip(results[objective], want, strict=True):
        scale = max(1.0, truth.abs().max().item())
        torch.testing.assert_close(mine, truth, rtol=0, atol=1e-5 * scale)


def test_gathers_in_the_order_of_ranks(distributed):
    world_size, _, gathered = distributed
    assert gathered.tolist() == [list(range(world_size))] * 2
    assert gathered.dtype == torch.bfloat16


def test_one_process_gathers_nothing():
    x = torch.randn(3, 4)
    assert gather_batch(x, 0) is x
