import pytest
import torch

from mast_ext import ops

_HAS_CUDA = torch.cuda.is_available() and ops.build_info()["cuda"] is not None


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not _HAS_CUDA, reason="needs a GPU and a CUDA build")
        ),
    ]
)
def device(request):
    torch.manual_seed(0)
    return torch.device(request.param)
