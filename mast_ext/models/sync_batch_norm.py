"""Batch norm over the batches of all processes: on a GPU torch's own, on the CPU this one.

torch's SyncBatchNorm works on GPUs alone. On the CPU two sums over processes per layer do the same,
so that what is true of distributed training there is true here, and can be tested.
"""

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mast_ext.distributed import is_initialized, sum_over_processes


def sync_batch_norm(network: nn.Module, device: torch.device | str) -> nn.Module:
    """Makes every batch norm in a network take its statistics over all processes.

    Weights and buffers, and so the names and values in ``state_dict``, stay what they are.

    Args:
        network: Changed in place, unless it is itself a batch norm.
        device: Where the network is going to train.

    Returns:
        The network.
    """
    if torch.device(device).type != "cpu":
        return convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _SyncBatchNormOnCPU
    return network


class _SyncBatchNormOnCPU(_BatchNorm):
    """The class that `sync_batch_norm` gives to a batch norm; it adds no state."""

    def forward(self, input: Tensor) -> Tensor:
        together = self.training and is_initialized()
        out = self._over_processes(input) if together else super().forward(input)
        for follower in ("drop", "act"):  # timm's batch norms have them
            out = getattr(self, follower, nn.Identity())(out)
        return out

    def _check_input_dim(self, input: Tensor) -> None:
        """Takes any number of dimensions, as the batch norms that it stands for do together."""

    def _over_processes(self, input: Tensor) -> Tensor:
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        own = wide.new_full((1,), input.numel() // input.shape[1])  # others may have more or fewer
        sums = sum_over_processes(torch.cat((wide.sum(axes), own)))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = wide - mean.view(shape)
        variance = sum_over_processes(centered.square().sum(axes)) / count
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        out = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running averages, as `torch.nn.BatchNorm2d` does."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum  # None: the average of all batches
        weight = 1.0 / float(self.num_batches_tracked) if momentum is None else momentum
        self.running_mean.lerp_(mean.to(self.running_mean), weight)
        self.running_var.lerp_(variance.to(self.running_var), weight)
