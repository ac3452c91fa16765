"""Losses that are made on the meta device, as parts of large models are, and filled afterwards."""

import pytest
import torch
from loss_calls import EACH, inputs_of, tensors_in
from torch.testing import assert_close

from mast_ext.losses import AugmentationMasks


def results_of(loss, call):
    torch.manual_seed(0)
    return [result.detach() for result in tensors_in(call(loss, *inputs_of(torch.float32)))]


def to_empty(loss):
    """As `Module.to_empty`, with values that are wrong if a loss reads them."""
    loss.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*loss.parameters(), *loss.buffers()):
            tensor.fill_(99)


@pytest.mark.parametrize("assign", [False, True], ids=["", "assign"])
@pytest.mark.parametrize(("make", "call"), EACH)
def test_is_whole_when_a_state_is_loaded(make, call, assign):
    loss = make()
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    with torch.device("meta"):
        other = make().train(loss.training)
    if not assign:
        to_empty(other)
    other.load_state_dict(state, assign=assign)
    other.to("cpu")  # a NotImplementedError if something is left there
    assert_close(results_of(other, call), results_of(loss, call), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"price": 0.1}, {"learned": False}], ids=str)
def test_masks_begin_by_reset_parameters(options):
    want = AugmentationMasks((0.3, 0.0, 0.2), 40, **options)
    with torch.device("meta"):
        masks = AugmentationMasks((0.3, 0.0, 0.2), 40, **options)
    to_empty(masks)
    for each in (want, masks):
        each.reset_parameters(torch.Generator().manual_seed(0))
    assert torch.equal(masks(), want())
    assert torch.equal(masks.group_weights(), want.group_weights())
