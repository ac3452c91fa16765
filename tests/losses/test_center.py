"""The center against lightly's. Updates that wait for other processes: test_distributed.py."""

import copy
import pickle

import pytest
import torch
from lightly.models.modules.center import Center as LightlyCenter
from torch.testing import assert_close

from mast_ext.losses.common.center import Center

SIZES = [((1, 1, 7), (2, 5, 7)), ((1, 7), (5, 7)), ((1, 3, 7), (5, 3, 7)), ((1, 1), (4, 6))]


@pytest.mark.parametrize(("size", "shape"), SIZES, ids=str)
def test_equals_lightly(size, shape, device):
    ours, theirs = (cls(size, momentum=0.7).to(device) for cls in (Center, LightlyCenter))
    for _ in range(3):
        x = torch.randn(shape, device=device, requires_grad=True)
        ours.update(x)
        theirs.update(x)
        assert_close(ours.value, theirs.value)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_is_float32_for_other_dtypes(dtype, device):
    if dtype == torch.float64 and device.type != "cpu":
        pytest.skip("float64 is for the CPU")
    center = Center((1, 7), momentum=0.0).to(device)
    x = (100 + torch.randn(4096, 7, device=device)).to(dtype)
    center.update(x)
    assert center.value.dtype == torch.float32
    assert_close(center.value.double(), x.double().mean(0, keepdim=True), rtol=1e-6, atol=0)


def test_no_rows_leave_it(device):
    center = Center((1, 1, 3)).to(device)
    center.center.fill_(2.0)
    center.update(torch.empty(2, 0, 3, device=device))
    assert center.value.tolist() == [[[2.0] * 3]]


def test_is_copied_and_pickled():
    center = Center((1, 3), center_update="deferred")
    center.update(torch.ones(2, 3))
    for other in (copy.deepcopy(center), pickle.loads(pickle.dumps(center))):
        other.update(torch.ones(2, 3))
        assert not torch.equal(other.value, center.value)


def test_update_compiles_with_sizes_that_may_change():
    compiled, plain = Center((1, 1, 3)), Center((1, 1, 3))
    update = torch.compile(compiled.update, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (4, 5):
        x = torch.randn(2, rows, 3)
        update(x)
        plain.update(x)
        assert_close(compiled.center, plain.center)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 2, 3)], ids=str)
def test_rejects_shapes(shape):
    message = r"x must have the shape of the center, \[1, 3\], .* got \["
    with pytest.raises(ValueError, match=message):
        Center((1, 3)).update(torch.ones(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "median"}, "center_mode must be 'mean' or 'sinkhorn', got 'median'"),
        ({"momentum": 1.5}, "center_momentum must be from 0 to 1, got 1.5"),
        ({"momentum": float("nan")}, "center_momentum must be from 0 to 1, got nan"),
        ({"center_update": "later"}, "center_update must be 'now' or 'deferred', got 'later'"),
    ],
)
def test_rejects_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Center((1, 3), **arguments)
