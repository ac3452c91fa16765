"""What measuring ranks costs: CPU time of one measurement beside that of a step, for every method.

    python benchmarks/train/ranks.py --report benchmarks/results/ranks-cpu.md

Networks, images and batches are the program's defaults (iBOT on its small transformer); steps
include the rendering of their views. CPU time of one thread, so that what else runs on the machine
counts little.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from runs import write_table
from torch.optim import AdamW

from mast_ext.data import open_source
from mast_ext.methods import METHODS, encode
from mast_ext.train.config import PretrainConfig
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.loop.ranks import EmbeddingRanks
from mast_ext.train.networks import build_networks

STEPS = 10


def costs(method: str) -> tuple[float, float, float]:
    """CPU seconds of a step and of a measurement, and the share of a whole run's measurements."""
    config = PretrainConfig(method=method)
    if method == "ibot":
        config = replace(config, model=replace(config.model, name="vit_small_images"))
    train = config.train
    networks = build_networks(config)
    source = open_source("shapes", "train", size=config.data.size)
    loader = training_loader(config, networks, source)
    total = round(train.epochs * len(loader))
    module = PretrainModule(
        networks,
        config.optimizer,
        batch_size=train.batch_size,
        steps_per_epoch=len(loader),
        total_steps=total,
    ).train()
    optimizer = AdamW([*module.backbone.parameters(), *module.method.parameters()])
    steps, measurements = [], []
    batches = iter(loader)
    for _ in range(STEPS):
        began = time.process_time()
        batch = next(batches)
        encoded = encode(module.method, module.backbone, module.teacher, batch)
        optimizer.zero_grad()
        module.method(encoded, batch)["loss"].backward()
        optimizer.step()
        steps.append(time.process_time() - began)
    ranks = EmbeddingRanks(
        source,
        config.augment,
        batch_size=train.batch_size,
        seed=config.seed,
        every=train.rank_every,
    )
    for _ in range(STEPS):
        began = time.process_time()
        ranks.measure(module)
        measurements.append(time.process_time() - began)
    measured = {train.log_every, total, *range(train.rank_every, total, train.rank_every)}
    step, measurement = median(steps), median(measurements)
    return step, measurement, len(measured) * measurement / (total * step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, help="Write the table to this file, too.")
    values = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for method in sorted(METHODS):
        step, measurement, share = costs(method)
        times = (f"{1e3 * step:.0f} ms", f"{1e3 * measurement:.0f} ms")
        rows.append([f"`{method}`", *times, f"{100 * share:.2f} %"])
    write_table(
        "The cost of RankMe and LiDAR",
        [
            f"CPU time of one thread, medians of {STEPS}. The share is that of all measurements of"
            " a run of default length in the time of its steps."
        ],
        ["method", "step", "measurement", "share of the training time"],
        rows,
        values,
    )


if __name__ == "__main__":
    main()
