"""Optimizers, parameter groups and the learning-rate schedule."""

import math
from collections.abc import Iterable

import torch
from timm.optim import Lars
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mast_ext.train.config import OptimizerConfig


def parameter_groups(
    module: nn.Module, weight_decay: float, exempt: Iterable[str] = ()
) -> list[dict]:
    """Two groups: weights, which decay, and the rest, which does not.

    Biases and norms are recognized by their single axis; ``exempt`` names others (masks).
    """
    exempt = set(exempt)
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (keep if parameter.ndim < 2 or name in exempt else decay).append(parameter)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": keep, "weight_decay": 0.0},
    ]


def create_optimizer(groups: list[dict], config: OptimizerConfig, batch_size: int) -> Optimizer:
    """The optimizer with the peak learning rate ``lr * batch_size / 256`` (Goyal et al. 2017).

    LARS (You et al. 2017) scales the rate of every weight by ``1e-3 ‖w‖ / (‖g‖ + decay ‖w‖)``;
    what does not decay (biases, norms, masks) is left to plain SGD with momentum, as SimCLR,
    Barlow Twins and VICReg do.

    Args:
        groups: What `parameter_groups` gives.
        config: Optimizer and rate.
        batch_size: Images per step.
    """
    lr = config.lr * batch_size / 256
    decays, rest = groups[0], {**groups[1], "lr": lr * config.bias_lr}
    if config.name == "adamw":
        return AdamW([decays, rest], lr=lr)
    if config.name == "sgd":
        return SGD([decays, rest], lr=lr, momentum=0.9)
    # timm adapts the rate of weights that decay; `always_adapt` also does at weight decay 0.
    return Lars([{**decays, "always_adapt": True}, rest], lr=lr, momentum=0.9, trust_coeff=1e-3)


def warmup_cosine(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Fraction of the peak learning rate at a step: linear rise, then half a cosine to ``floor``.

    Loshchilov & Hutter 2017 with the warm-up of Goyal et al. 2017.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def weight_decay_at(step: int, config: OptimizerConfig, total: int) -> float:
    """The weight decay of a step: from ``weight_decay`` to ``final_weight_decay`` by half a cosine.

    Caron et al. 2021 raise it from 0.04 to 0.4. Without a final one it is constant.
    """
    if config.final_weight_decay is None:
        return config.weight_decay
    start, end = config.weight_decay, config.final_weight_decay
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, step / total))) / 2


def create_schedule(
    optimizer: Optimizer, config: OptimizerConfig, *, steps_per_epoch: int, total_steps: int
) -> LambdaLR:
    """Warm-up and cosine decay, moved once per step."""
    warmup = min(round(config.warmup * steps_per_epoch), total_steps)

    def factor(step: int) -> float:
        return warmup_cosine(step, warmup=warmup, total=total_steps, floor=config.min_lr)

    return LambdaLR(optimizer, factor)


def gradient_norm(module: nn.Module) -> torch.Tensor:
    """Euclidean norm of all gradients together, a scalar tensor."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients)
