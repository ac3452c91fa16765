"""Errors of NT-Xent and its gradient against float64, beside those of plain torch in one dtype.

python benchmarks/accuracy.py [--device cuda] prints a table in Markdown. An error is the norm of
the difference over the norm of the truth.
"""

import argparse
import platform

import torch
import torch.nn.functional as F
from torch import Tensor

from mast_ext.losses import NTXentLoss

BATCH, DIM = 512, 128
TEMPERATURES = [0.5, 0.1, 0.05, 0.02]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def isotropic() -> Tensor:
    return torch.randn(2, BATCH, DIM)


def pairs() -> Tensor:
    """Views of the same image resemble each other, as late in training."""
    return torch.randn(BATCH, DIM) + 0.5 * torch.randn(2, BATCH, DIM)


def common_mean() -> Tensor:
    """Every embedding has the same large part: partial collapse."""
    return torch.randn(DIM) + 0.3 * torch.randn(2, BATCH, DIM)


def plain(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """As the field writes it: normalize, one product, cross entropy, all in the inputs' dtype."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(own, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(a)))


def ours(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    return NTXentLoss(temperature)(a, b)


def value_and_gradient(function, views: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    views = views.detach().requires_grad_()
    loss = function(*views, temperature)
    (gradient,) = torch.autograd.grad(loss, [views])
    return loss.detach().double().cpu(), gradient.double().cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    print(f"NT-Xent, B {BATCH}, D {DIM}; torch {torch.__version__}, {name}.\n")
    print("| embeddings | dtype | temperature | loss: ours | plain | gradient: ours | plain |")
    print("|---|---|---|---|---|---|---|")
    for make in (isotropic, pairs, common_mean):
        for dtype in DTYPES:
            for temperature in TEMPERATURES:
                torch.manual_seed(0)
                views = make().to(device, dtype)
                truth = value_and_gradient(plain, views.cpu().double(), temperature)
                row = []
                for function in (ours, plain):
                    found = value_and_gradient(function, views, temperature)
                    both = zip(found, truth, strict=True)
                    row.append([((f - t).norm() / t.norm()).item() for f, t in both])
                (loss, gradient), (plain_loss, plain_gradient) = row
                print(
                    f"| {make.__name__.replace('_', ' ')} | {str(dtype).removeprefix('torch.')} | "
                    f"{temperature} | {loss:.1e} | {plain_loss:.1e} | {gradient:.1e} | "
                    f"{plain_gradient:.1e} |"
                )


if __name__ == "__main__":
    main()
