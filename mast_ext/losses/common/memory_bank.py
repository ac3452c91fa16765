"""A queue of past embeddings to contrast with (He et al., "Momentum Contrast", CVPR 2020)."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mast_ext.checks import require_integers
from mast_ext.distributed import all_gather, require_equal_batches, world_size


class MemoryBank(nn.Module):
    """The last ``M`` embeddings, of norm 1; the oldest are overwritten.

    As lightly's: the bank starts with random unit vectors (the same ones for the same seed), and a
    batch that reaches its end fills it up and starts over at row 0; what does not fit is dropped.
    Unlike lightly's, both buffers are in ``state_dict``, so that training resumes with its
    negatives. A state without them, such as one of lightly's loss, leaves the bank as it is, with a
    warning.

    Args:
        size: ``(M, D)``, or 0 for no bank.
        gather_distributed: Adds the embeddings of all processes, so that all hold the same bank
            (if they start with the same, as DistributedDataParallel sees to).

    Attributes:
        rows: ``M``, 0 for no bank.
        bank: ``[M, D]`` float32; None for no bank.
        bank_ptr: ``[1]`` int64, the row that the next batch starts at; None for no bank.

    Raises:
        ValueError: ``size`` has a negative entry or is not ``(M, D)``.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(self, size: int | Sequence[int] = 0, gather_distributed: bool = False) -> None:
        super().__init__()
        sizes = size if isinstance(size, Sequence) else [size]
        self.size = require_integers("memory_bank_size", sizes)
        self.gather_distributed = gather_distributed
        if self.size != (0,) and (len(self.size) != 2 or min(self.size) < 0):
            raise ValueError(f"memory_bank_size must be (rows, width) or 0 for none, got {size!r}")
        self.rows = self.size[0]
        # Of no bank none: made on the meta device, it would stay there when a state is loaded.
        bank = F.normalize(torch.randn(self.size), dim=-1) if self.rows else None
        self.register_buffer("bank", bank)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long) if self.rows else None)

    @torch.no_grad()
    def update(self, embeddings: Tensor) -> None:
        """Overwrites the oldest rows.

        Args:
            embeddings: ``[B, D]``, of any norm.

        Raises:
            ValueError: The processes' batches differ in size.
            RuntimeError: Another process died or is late.
        """
        wide = embeddings.to(torch.promote_types(self.bank.dtype, torch.float32))
        new = F.normalize(wide, dim=1).to(self.bank.dtype)
        if self.gather_distributed and world_size() > 1:
            require_equal_batches(new, 0)
            new = all_gather(new)
        # The pointer stays a tensor: to read it, the host would have to wait for a GPU.
        target = self.bank_ptr + torch.arange(min(len(new), self.rows), device=self.bank.device)
        fits = (target < self.rows).unsqueeze(1)
        target = target % self.rows
        self.bank.index_copy_(0, target, new[: self.rows].where(fits, self.bank[target]))
        end = self.bank_ptr + len(new)
        self.bank_ptr.copy_(end.where(end < self.rows, 0))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *args: Any,
    ) -> None:
        own = {f"{prefix}bank", f"{prefix}bank_ptr"}
        if self.rows and not own & state_dict.keys():
            warnings.warn(
                f"the state has no {' and '.join(sorted(own))} (lightly's losses keep none): the"
                " memory bank stays as it is",
                stacklevel=4,
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *args
        )

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.size))
