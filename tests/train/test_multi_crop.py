"""DINO and iBOT inside training steps and runs, on a tiny vision transformer."""

import os
import signal
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file

from mast_ext.data import open_source
from mast_ext.methods import METHODS as REGISTRY
from mast_ext.methods import HardViewOptions
from mast_ext.models import NormalizedLinear
from mast_ext.train.config import ModelConfig
from mast_ext.train.errors import Interrupted, RunError
from mast_ext.train.loop.loader import training_loader
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.loop.optimizers import gradient_norm
from mast_ext.train.networks import build_networks
from mast_ext.train.state.checkpoint import read_checkpoint

VIT = {"img_size": 16, "patch_size": 4, "depth": 1, "embed_dim": 16, "num_heads": 2}
METHODS = [name for name in sorted(REGISTRY) if REGISTRY[name].multi_crop]
METHODS += [f"{name}+hard" for name in METHODS] + ["dino+equimod", "ibot+equimod+hard"]


@pytest.fixture
def vit(tiny):
    return replace(tiny, model=ModelConfig("vit_small_images", timm_args=VIT))


@pytest.fixture
def short(vit):
    return replace(vit, train=replace(vit.train, epochs=1))


def changed(config, method, **values):
    return replace(config, **{method: replace(getattr(config, method), **values)})


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", METHODS)
def test_every_weight_learns(train_tiny, short, method):
    name = method.split("+")[0]
    has_teacher = name != "lejepa"
    config = changed(short, name, freeze_last_layer=0.0) if has_teacher else short
    module = train_tiny(config=config, method=method)
    assert module.method.name == method.removesuffix("+hard")
    still = [n for n, p in module.named_parameters() if p.requires_grad and not p.grad.any()]
    assert still == []
    center = "method.base.loss.center" if "equimod" in method else "method.loss.center"
    assert not has_teacher or module.state_dict()[center].any()


@pytest.mark.parametrize("method", ["dino+hard", "ibot"])
def test_mixed_precision(train_tiny, short, method):
    config = replace(short, train=replace(short.train, precision="bf16-mixed"))
    module = train_tiny(config=config, method=method)
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("method", "center_mode"), [("dino", "sinkhorn"), ("ibot+equimod+hard", "mean")]
)
def test_same_bits_when_interrupted(train_tiny, vit, tmp_path, monkeypatch, method, center_mode):
    """While temperatures and weight decay are on their way, and prototypes frozen."""
    base = method.split("+")[0]
    config = changed(
        vit,
        base,
        center_mode=center_mode,
        warmup_teacher_temperature=0.2,
        temperature_warmup=2.0,
        freeze_last_layer=1.5,
    )
    optimizer = replace(config.optimizer, clip=0.5, weight_decay=0.1, final_weight_decay=0.5)
    config = replace(config, optimizer=optimizer)
    whole = train_tiny("whole", config=config, method=method)

    def stop(module, batch, batch_idx):
        if module.trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(PretrainModule, "on_train_batch_start", stop)
        with pytest.raises(Interrupted):
            train_tiny(config=config, method=method)
    torch.manual_seed(99)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    prefix = "method.base." if "equimod" in method else "method."
    state = read_checkpoint(last)["state_dict"]
    assert state[f"{prefix}loss.center"].any() == (center_mode == "mean")
    assert base == "dino" or state[f"{prefix}patch_loss.center.center"].isfinite().all()
    assert same_weights(train_tiny(resume=last, config=config, method=method), whole)


@pytest.mark.parametrize("method", ["dino", "ibot+equimod"])
def test_steps_that_do_not_select_are_plain_ones(train_tiny, short, method):
    plain = train_tiny("plain", config=short, method=method)
    config = replace(short, hard_views=HardViewOptions(4, local_views=5, warmup=9.0))
    assert same_weights(plain, train_tiny("never", config=config, method=method))
    config = replace(short, hard_views=HardViewOptions(4, local_views=5))
    assert not same_weights(plain, train_tiny("hard", config=config, method=method))


def test_prototypes_rest_for_the_first_epoch(train_tiny, vit, monkeypatch):
    """Though the optimizer would decay them."""
    seen = []

    def look(module, outputs, batch, batch_idx):
        layer = next(m for m in module.method.modules() if isinstance(m, NormalizedLinear))
        seen.append(layer.weight.detach().clone())

    monkeypatch.setattr(PretrainModule, "on_train_batch_end", look)
    config = replace(vit, optimizer=replace(vit.optimizer, weight_decay=0.5))
    train_tiny(config=changed(config, "dino", freeze_last_layer=1.0), method="dino")
    moved = [not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False)]
    assert moved == [False, False, True, True, True, True, True]


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_gradients_are_clipped(train_tiny, short, monkeypatch, clip):
    norms = []

    def look(module, outputs, batch, batch_idx):
        norms.append((float(module.gradient_norm), float(gradient_norm(module))))

    monkeypatch.setattr(PretrainModule, "on_train_batch_end", look)
    train_tiny(config=replace(short, optimizer=replace(short.optimizer, clip=clip)), method="dino")
    for before, after in norms:
        assert before > 0.05
        assert after == pytest.approx(clip or before, rel=1e-3)


def test_weight_decay_follows_its_schedule(train_tiny, vit, monkeypatch):
    seen = []

    def look(module, outputs, batch, batch_idx):
        seen.append([group["weight_decay"] for group in module.optimizers().param_groups])

    monkeypatch.setattr(PretrainModule, "on_train_batch_end", look)
    optimizer = replace(vit.optimizer, weight_decay=0.0, final_weight_decay=0.4)
    train_tiny(config=replace(vit, optimizer=optimizer), method="dino")
    decays = [decay for decay, _ in seen]
    assert decays[0] == 0 and decays[4] == pytest.approx(0.2) and decays == sorted(decays)
    assert all(rest == 0 for _, rest in seen)


def test_backbone_loads_into_plain_timm(train_tiny, short, tmp_path):
    module = train_tiny(config=short, method="ibot")
    plain = timm.create_model(
        "vit_tiny_patch16_224", **VIT, dynamic_img_size=True, num_classes=0, pretrained=False
    )
    plain.load_state_dict(load_file(tmp_path / "run" / "backbone.safetensors"))
    images = torch.randn(2, 3, 16, 16)
    # The weights are channels last in training, which convolutions may sum in another order.
    torch.testing.assert_close(plain.eval()(images), module.backbone.eval()(images))


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_a_loss_that_is_not_finite_stops_the_run(train_tiny, short, monkeypatch, tmp_path, name):
    original = REGISTRY[name].forward

    def forward(method, *args):
        terms = original(method, *args)
        step = method.loss.steps = getattr(method.loss, "steps", 0) + 1
        return {**terms, "loss": terms["loss"] * (float("nan") if step == 3 else 1.0)}

    monkeypatch.setattr(REGISTRY[name], "forward", forward)
    with pytest.raises(RunError, match="the loss is nan at step 3"):
        train_tiny(config=short, method=name)
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("hard", [False, True])
def test_forwards_of_a_run(short, hard):
    config = replace(short, method="dino")
    if hard:
        config = replace(config, hard_views=HardViewOptions(4, local_views=6))
    networks = build_networks(config)
    source = open_source("shapes", "train", size=16, max_images=24)
    loader = training_loader(config, networks, source)
    # Two views by student and teacher, and two local ones of a quarter; four by both and six.
    assert networks.forwards(loader, 10) == 10 * (4.5 + hard * (8 + 1.5))
    assert loader.policy.num_views() == (10 if hard else 4)


def test_backbone_has_to_take_the_sizes_of_views(short):
    """Of local views in training, and of both kinds in selection."""
    config = replace(short, method="dino")
    plain = replace(short.model, name="vit_tiny_patch16_224")
    message = "dino.local_size: vit_tiny_patch16_224 does not take images of 8 pixels.*dynamic_img"
    with pytest.raises(ValueError, match=message):
        build_networks(replace(config, model=plain))
    build_networks(replace(config, hard_views=HardViewOptions(4, size=8)))
    message = "hard_views.size: vit_small_images does not take images of 6 pixels"
    with pytest.raises(ValueError, match=message):
        build_networks(replace(config, hard_views=HardViewOptions(4, size=12)))
