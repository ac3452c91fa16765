"""SimCLR over many processes: the negatives are the rows of all of them.

    torchrun --nproc-per-node 2 examples/distributed_simclr.py

Whatever the number of processes, weights move as in one process on the whole batch. Images are
procedural here, so that there is nothing to download; any loader that shards will do.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mast_ext.augment import AugmentationRecipe, ComposedPolicy, build_loader
from mast_ext.data import open_source
from mast_ext.losses import NTXentLoss
from mast_ext.models import Projector, create_backbone, sync_batch_norm


def main() -> None:
    """Joins the processes, trains, and leaves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together")
    parser.add_argument("--images", type=int, default=8192, help="images of an epoch")
    options = parser.parse_args()

    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl")
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    train(options, device)
    dist.barrier()  # none leaves while another still sends
    # The model is gone by now: it holds the process group, and a group that goes with a model
    # rather than here can wait for its own thread forever.
    dist.destroy_process_group()


def train(options: argparse.Namespace, device: torch.device) -> None:
    """Trains, and prints the mean loss of all processes."""
    rank, world_size = dist.get_rank(), dist.get_world_size()

    loader = build_loader(
        open_source("shapes", "train", max_images=options.images),
        ComposedPolicy(AugmentationRecipe()),
        batch_size=options.batch_size // world_size,
        rank=rank,
        world_size=world_size,
    )
    torch.manual_seed(0)
    backbone, num_features = create_backbone("resnet_small", small_images=True)
    network = nn.Sequential(backbone, Projector(num_features, (256, 128), last_norm=True))
    model = DistributedDataParallel(sync_batch_norm(network, device).to(device))
    criterion = NTXentLoss(temperature=0.2, gather_distributed=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    step = 0
    while step < options.steps:
        for batch in loader.on(device):
            first, second = model(batch.images.flatten(0, 1)).chunk(2)
            loss = criterion(first, second)  # of this process's rows, against all
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step in (1, options.steps) or step % 50 == 0:
                mean = loss.detach().clone()
                dist.all_reduce(mean)
                if rank == 0:
                    print(f"step {step}: loss {mean.item() / world_size:.4f}", flush=True)
            if step == options.steps:
                break


if __name__ == "__main__":
    main()
