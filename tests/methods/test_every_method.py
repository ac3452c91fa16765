"""What every method has to do: a new one is tested here as soon as it is registered."""

import dataclasses

import pytest
import torch

from mast_ext.methods import METHODS, Encoded, HardViewOptions, encode, hard_selection
from mast_ext.train.config import PretrainConfig

every_method = pytest.mark.parametrize("name", sorted(METHODS))
with_equimod = pytest.mark.parametrize("equimod", [False, True], ids=["", "equimod"])


@every_method
def test_options_are_settings_of_a_run_that_explain_themselves(name):
    """A frozen dataclass with defaults, all of whose fields the help can describe."""
    kind = METHODS[name].Options
    assert isinstance(getattr(PretrainConfig(method=name), name), kind)
    assert PretrainConfig().to_dict()[name].keys() == {f.name for f in dataclasses.fields(kind)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().new = 1
    documented = "".join(base.__doc__ for base in kind.__mro__[:-1])
    assert [f.name for f in dataclasses.fields(kind) if f"{f.name}: " not in documented] == []


@every_method
@with_equimod
def test_step_gives_a_loss_with_gradient_and_logs_without(crops, name, equimod):
    method, backbone, teacher = crops.build(name, equimod=equimod)
    batch = crops.batch_of(method.policy(crops.recipe))
    assert (teacher is None) == (method.teacher() is None)
    terms = method(encode(method, backbone, teacher, batch), batch)
    loss = terms.pop("loss")
    assert loss.shape == () and loss.isfinite()
    assert all(value.shape == () and not value.requires_grad for value in terms.values())
    loss.backward()
    parameters = [*method.named_parameters(), *backbone.named_parameters()]
    assert [n for n, p in parameters if p.grad is None or not p.grad.any()] == []


@every_method
@with_equimod
def test_state_is_all_that_a_method_is(crops, name, equimod):
    """One with other weights says the same after it has loaded them, options being equal."""
    first, backbone, teacher = crops.build(name, equimod=equimod)
    batch = crops.batch_of(first.policy(crops.recipe))
    method, *_ = crops.build(name, equimod=equimod)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_()
    method.load_state_dict(first.state_dict())
    encoded = encode(first, backbone, teacher, batch)
    assert torch.equal(first(encoded, batch)["loss"], method(encoded, batch)["loss"])


@every_method
@with_equimod
def test_embeds_any_leading_axes(crops, name, equimod):
    method, backbone, _ = crops.build(name, equimod=equimod)
    method.eval()
    features = backbone(torch.randn(6, 3, 8, 8)).detach()
    embedded = method.embed(features)
    assert embedded.ndim == 2 and len(embedded) == 6
    torch.testing.assert_close(method.embed(features.unflatten(0, (2, 3))).flatten(0, 1), embedded)


@every_method
@with_equimod
def test_hard_views_make_a_batch_to_train_on(crops, name, equimod):
    method, backbone, teacher = crops.build(name, equimod=equimod)
    hard = hard_selection(method, crops.recipe, HardViewOptions(4))
    batch = crops.batch_of(hard.policy)
    chosen, logs = hard(batch, backbone, teacher, select=True)
    plain = crops.batch_of(method.policy(crops.recipe))
    assert chosen.images.shape == plain.images.shape
    assert chosen.parameters.shape == plain.parameters.shape
    assert logs["hard_views/margin"] >= 0
    assert method(encode(method, backbone, teacher, chosen), chosen)["loss"].isfinite()


@every_method
@with_equimod
def test_a_method_with_a_teacher_says_so_when_it_is_missing(crops, name, equimod):
    method, backbone, teacher = crops.build(name, equimod=equimod)
    batch = crops.batch_of(method.policy(crops.recipe))
    encoded = encode(method, backbone, teacher, batch)
    alone = dataclasses.replace(encoded, targets=None)
    if method.teacher() is None:
        assert method(alone, batch)["loss"].isfinite()
        return
    with pytest.raises(ValueError, match=f"{name} needs targets, the embeddings of its teacher"):
        method(alone, batch)


@every_method
def test_names_weights_that_must_not_decay_and_subspaces_it_has(crops, name):
    method, *_ = crops.build(name)
    assert method.no_weight_decay() <= {name for name, _ in method.named_parameters()}
    subspaces = method.subspaces()
    if subspaces is not None:
        count, dims = subspaces.masks.shape
        assert len(subspaces.names) == count == len(subspaces.freed)
        assert dims == method.embed(torch.zeros(2, 8)).shape[1]
        assert torch.equal(subspaces.overlap, subspaces.overlap.T)


def test_encoded_views_need_no_teacher():
    encoded = Encoded(torch.zeros(2, 3, 4))
    assert encoded.targets is None and encoded.patches is None
