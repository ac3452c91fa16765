"""LeJEPA on crops of two sizes: which views its loss sees, and what its directions depend on."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mast_ext.losses import SIGReg
from mast_ext.methods import encode


def encoded_batch(crops, options=None):
    method, backbone, _ = crops.build("lejepa", options)
    batch = crops.batch_of(method.policy(crops.recipe))
    return method, encode(method, backbone, None, batch), batch


def test_loss_is_of_all_views_around_the_full_size_ones(crops):
    options = replace(crops.options["lejepa"], regularization=0.2)
    method, encoded, batch = encoded_batch(crops, options)
    views = method.embed(encoded.features).detach()
    assert len(views) == 2 + options.local_views
    sigreg = SIGReg(num_vectors=options.slices, seed=0)
    want = 0.2 * sigreg(views) + 0.8 * (views - views[:2].mean(0)).square().mean()
    assert_close(method(encoded, batch)["loss"].detach(), want)


def test_directions_are_others_at_every_step_and_go_on_after_a_resumption(crops):
    method, encoded, batch = encoded_batch(crops)
    losses = [method(encoded, batch)["loss"].item() for _ in range(3)]
    assert len(set(losses)) == 3
    resumed, _, _ = crops.build("lejepa")
    torch.manual_seed(9)
    resumed.load_state_dict(method.state_dict())
    assert resumed(encoded, batch)["loss"] == method(encoded, batch)["loss"]


def test_crops_are_hard_by_their_distance(crops):
    method, encoded, batch = encoded_batch(crops)
    views = method.embed(encoded.features)
    found = method.crop_losses(encoded)
    assert_close(found, (views[:, None] - views[None]).square().mean(-1), rtol=1e-4, atol=1e-6)
    assert torch.equal(method.pair_losses(encoded, batch), found)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"local_views": 0}, "local_views must be at least 1, got 0"),
        ({"regularization": 1.5}, "lejepa.regularization must be from 0 to 1, got 1.5"),
        ({"slices": 0}, "lejepa.slices must be at least 1, got 0"),
    ],
)
def test_refuses_options(changed, message, crops):
    with pytest.raises(ValueError, match=message):
        crops.build("lejepa", replace(crops.options["lejepa"], **changed))
