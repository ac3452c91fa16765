"""Whether MAST's uncertainty knows ambiguous views: rank correlations on `shapes`.

    mast-ext pretrain --mast.uncertainty subspace --baseline none --out runs/uncertain
    python benchmarks/train/mast/uncertainty.py runs/uncertain

Every test image is augmented once; Spearman's correlation of its log-variance in every subspace
with the crop's area, with how much of the object's square the crop shows (`shapes` knows where
the object is), and with how far its colors were changed; and the difference that grey makes.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from mast_ext.augment import AugmentationParameters, sampler
from mast_ext.augment.torchvision import render
from mast_ext.cli.pretrain import load_config
from mast_ext.data import ShapesSource
from mast_ext.data.shapes import OFFSET, RADII
from mast_ext.train.state.restore import restore_checkpoint

SEED, BATCH = 1234, 512


def visible(box: np.ndarray, labels: dict[str, np.ndarray]) -> np.ndarray:
    """Share of the square around the object that lies in the crop, ``[N]``."""
    radius = np.take(RADII, labels["size"])
    share = np.ones(len(box))
    for start, extent, side in ((0, 2, labels["position"] // 2), (1, 3, labels["position"] % 2)):
        center = 0.5 + OFFSET * (2 * side - 1)
        low = np.maximum(box[:, start], center - radius)
        high = np.minimum(box[:, start] + box[:, extent], center + radius)
        share *= np.clip((high - low) / (2 * radius), 0, 1)
    return share


@torch.inference_mode()
def log_variances(run: Path, rows: np.ndarray, source: ShapesSource) -> tuple[Tensor, tuple]:
    """``[N, K]`` of one augmented view of every image, and the subspaces' names."""
    config = load_config(run)
    restored = restore_checkpoint(run / "checkpoints" / "last.ckpt", config)
    method: Any = restored.method
    restored.backbone.eval(), method.eval()
    assert source.stacked is not None
    views = render(source.stacked, torch.from_numpy(rows)[None], config.augment)[0]
    found = []
    for part in views.split(BATCH):
        log_var = method.uncertainty(restored.backbone(part)[None])
        if log_var is None:
            raise SystemExit(f"{run} was trained without uncertainty")
        found.append(log_var[0])
    return torch.cat(found), method.subspace_names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="A run of mast with mast.uncertainty.")
    values = parser.parse_args()
    config, source = load_config(values.run), ShapesSource("test")
    indices = np.arange(len(source))
    rows = sampler.composed_rows(config.augment, SEED, 0, indices, source.sizes, 0)
    log_var, names = log_variances(values.run, rows, source)

    parameters = AugmentationParameters(torch.from_numpy(rows)[None])
    crop = parameters.group("crop")[0].numpy()
    grey = parameters.column("grayscale")[0].numpy() > 0
    standard = parameters.standardized(config.augment)[0, :, 6:10].numpy()
    truths = {
        "crop's area": crop[:, 2] * crop[:, 3],
        "object visible": visible(crop, source.labels),
        "color change": np.linalg.norm(standard, axis=1),
    }
    print("| subspace | mean | deviation | " + " | ".join(truths) + " | grey − colored |")
    print("|---" * (4 + len(truths)) + "|")
    for name, column in zip(names, log_var.double().T, strict=True):
        cells = [f"{column.mean():.2f}", f"{column.std():.2f}"]
        for truth in truths.values():
            cells.append(f"{spearman_corrcoef(column, torch.from_numpy(truth).double()):+.2f}")
        print(
            f"| {name} | "
            + " | ".join([*cells, f"{column[grey].mean() - column[~grey].mean():+.2f}"])
            + " |"
        )


if __name__ == "__main__":
    main()
