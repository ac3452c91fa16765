"""How many launches a step of a small loss takes on a GPU: of our kernels, and of PyTorch's.

At 256 images each takes longer to launch than to run. PyTorch's include the 1 that backward()
begins with, and matrix products.
"""

import json
import sys

import pytest

# At most, forward and backward.
MOST = {
    "NTXentLoss": (5, 1),
    "DCLLoss": (5, 1),
    "InfoNCELoss": (5, 1),
    "InfoNCELoss two-sided": (5, 1),
    "VICRegLoss": (3, 3),
    "BarlowTwinsLoss": (3, 3),
    "NegativeCosineSimilarity": (5, 1),
    "MASTLoss": (7, 5),
    "SIGReg": (5, 12),
}


@pytest.mark.slow
def test_launches_are_few(run, emulated_module):
    out = run(
        sys.executable,
        "tests/emulation/count_launches.py",
        env={"MAST_EXT_LIBRARY": str(emulated_module)},
    )
    found = json.loads(out.splitlines()[-1])
    assert found.keys() == MOST.keys()
    for name, counts in found.items():
        ours, torchs = MOST[name]
        assert 0 < counts["ours"] <= ours, (name, counts)
        assert sum(counts["torch"].values()) <= torchs, (name, counts)
