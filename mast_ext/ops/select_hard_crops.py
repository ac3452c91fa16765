"""Shape-only kernel of ``mast_ext::select_hard_crops``, and the draw of the tuples it is given.

Tuples are drawn on the host, whatever device chooses among them: no GPU is waited for.
"""

import math
import random

import torch
from torch import Tensor

from mast_ext.compiling import never_compiled
from mast_ext.ops.common import accumulation_dtype, shape_only

op = torch.ops.mast_ext.select_hard_crops.default


@shape_only("mast_ext::select_hard_crops", on_host={"tuples"})
def _(ce, tuples, num_locals):
    batch = ce.shape[2]
    index = ce.new_empty((2 + num_locals, batch), dtype=torch.long)
    return index, ce.new_empty((batch,), dtype=accumulation_dtype(ce))


@never_compiled
def draw_tuples(
    num_globals: int,
    local_crops: int,
    num_locals: int,
    limit: int,
    generator: torch.Generator | None,
) -> Tensor | None:
    """``limit`` different tuples of crops, all equally likely.

    Returns:
        int64 ``[limit, 2 + num_locals]`` on the CPU in lexicographic order: an even global crop, an
        odd one, then local crops, which count from ``num_globals``. ``None`` when there are no more
        than ``limit`` tuples: then these are all.
    """
    odd = num_globals // 2
    subsets = math.comb(local_crops, num_locals)
    total = (num_globals - odd) * odd * subsets
    if limit >= total:
        return None
    # Floyd's draw without replacement, from Python's generator: a tuple's number may have more than
    # 64 bits.
    seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
    draw = random.Random(seed)
    numbers: set[int] = set()
    for last in range(total - limit, total):
        number = draw.randrange(last + 1)
        numbers.add(last if number in numbers else number)
    tuples = []
    for number in sorted(numbers):
        pair, subset = divmod(number, subsets)
        chosen = _combination(subset, local_crops, num_locals)
        views = [num_globals + local for local in chosen]
        tuples.append([pair // odd * 2, pair % odd * 2 + 1, *views])
    return torch.tensor(tuples, device="cpu")


def _combination(number: int, items: int, count: int) -> list[int]:
    """The ``count``-subset of ``range(items)`` with this number in lexicographic order."""
    chosen: list[int] = []
    for item in range(items):
        if len(chosen) == count:
            break
        with_item = math.comb(items - item - 1, count - len(chosen) - 1)
        if number < with_item:
            chosen.append(item)
        else:
            number -= with_item
    return chosen
