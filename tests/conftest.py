import pytest
import torch

from mast_ext import ops

_HAS_CUDA = torch.cuda.is_available() and ops.build_info()["cuda"] is not None


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not _HAS_CUDA:
        pytest.skip("needs a GPU and a CUDA build")
    torch.manual_seed(0)
    return torch.device(request.param)
