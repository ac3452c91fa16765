"""Whether MAST's uncertainty knows ambiguous pairs: rank correlations on `shapes`.

    mast-ext pretrain --mast.uncertainty true --baseline none --out runs/uncertain
    python benchmarks/train/mast_uncertainty.py runs/uncertain

Two views of every test image are drawn as in the last epoch. Spearman's correlation of the pair's
log-variance with how far apart the network puts its views; with the overlap of their crops; with
how much of the object's square the crop that shows less of it shows (`shapes` knows where the
object is); and with how differently their colors were changed; and the difference that it makes
when one view alone is gray.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from mast_ext.augment import AugmentationParameters, build_loader
from mast_ext.augment.parameters import COLUMN
from mast_ext.cli.pretrain import load_config
from mast_ext.data import ShapesSource
from mast_ext.data.shapes import OFFSET, RADII
from mast_ext.methods import encode
from mast_ext.train.state.restore import restore_checkpoint

SEED, BATCH = 1234, 512


def visible(boxes: np.ndarray, labels: dict[str, np.ndarray]) -> np.ndarray:
    """Share of the square around the object that lies in each view's crop, ``[V, N]``."""
    radius = np.take(RADII, labels["size"])
    share = np.ones(boxes.shape[:2])
    for start, extent, side in ((0, 2, labels["position"] // 2), (1, 3, labels["position"] % 2)):
        center = 0.5 + OFFSET * (2 * side - 1)
        low = np.maximum(boxes[..., start], center - radius)
        high = np.minimum(boxes[..., start] + boxes[..., extent], center + radius)
        share *= np.clip((high - low) / (2 * radius), 0, 1)
    return share


@torch.inference_mode()
def pairs_of(run: Path, source: ShapesSource) -> tuple[Tensor, Tensor, Tensor]:
    """Of a pair of views of every image: log-variances ``[N]``, losses ``[N]``, rows ``[2, N, P]``.

    In the order of the images.
    """
    config = load_config(run)
    restored = restore_checkpoint(run / "checkpoints" / "last.ckpt", config)
    backbone, method = restored.backbone.eval(), restored.method
    assert method is not None
    method.eval()
    loader = build_loader(
        source,
        method.policy(config.augment),
        batch_size=BATCH,
        seed=SEED,
        shuffle=False,
        drop_last=False,
    )
    loader.set_epoch(max(math.ceil(config.train.epochs) - 1, 0))
    log_variances, losses, rows = [], [], []
    for batch in loader:
        log_variance = method.pair_uncertainty(batch)
        if log_variance is None:
            raise SystemExit(f"{run} was trained without uncertainty")
        log_variances.append(log_variance)
        losses.append(method.pair_losses(encode(method, backbone, None, batch), batch)[0, 1])
        rows.append(batch.parameters[:2])
    return torch.cat(log_variances), torch.cat(losses), torch.cat(rows, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="A run of mast with mast.uncertainty.")
    values = parser.parse_args()
    config, source = load_config(values.run), ShapesSource("test")
    log_variance, losses, rows = pairs_of(values.run, source)

    parameters = AugmentationParameters(rows)
    gray = parameters.column("grayscale") > 0
    colors = parameters.standardized(config.augment)[..., COLUMN["brightness"] : COLUMN["hue"] + 1]
    shown = visible(parameters.group("crop").numpy(), source.labels).min(0)
    truths = {
        "distance of the embeddings": losses,
        "overlap of the crops": parameters.crop_iou(0, 1),
        "object visible in both": torch.from_numpy(shown),
        "distance of the colors": (colors[0] - colors[1]).norm(dim=-1),
    }
    one = gray[0] != gray[1]
    print("| mean | deviation | " + " | ".join(truths) + " | one gray − others |")
    print("|---" * (3 + len(truths)) + "|")
    cells = [f"{log_variance.mean():.2f}", f"{log_variance.std():.2f}"]
    for truth in truths.values():
        cells.append(f"{spearman_corrcoef(log_variance.double(), truth.double()):+.2f}")
    cells.append(f"{log_variance[one].mean() - log_variance[~one].mean():+.2f}")
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
