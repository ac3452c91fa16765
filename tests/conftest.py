"""Which devices the operators are tested on.

`--emulated-cuda FILE` loads a build in which the CUDA kernels run on the CPU (tests/emulation) in
place of the installed one, and keeps the tests that exercise kernels.
"""

import importlib.util
import sys

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--emulated-cuda", help="the _C of a build with MAST_EXT_EMULATE_CUDA=ON")


def pytest_configure(config):
    if file := config.getoption("--emulated-cuda"):
        spec = importlib.util.spec_from_file_location("mast_ext._C", file)
        sys.modules["mast_ext._C"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["mast_ext._C"])


def pytest_collection_modifyitems(config, items):
    """Without a `device` a test is about the CPU: float64 gradients, messages, registration."""
    if config.getoption("--emulated-cuda"):
        kept = [item for item in items if "device" in item.fixturenames]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    from mast_ext import ops

    if request.param == "cuda" and not (torch.cuda.is_available() and ops.build_info()["cuda"]):
        pytest.skip("needs a GPU and a CUDA build")
    torch.manual_seed(0)
    return torch.device(request.param)
