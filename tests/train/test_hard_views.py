"""Hard view selection inside training steps and runs (what is chosen: tests/methods)."""

import copy
import csv
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from mast_ext.methods import HardViewOptions, SimSiam
from mast_ext.models import forward_views
from mast_ext.train.loop.module import PretrainModule
from mast_ext.train.networks import build_networks

COLUMNS = {
    f"hard_views/{name}" for name in ("margin", "iou", "iou_random", "color", "color_random")
}


@pytest.fixture
def short(tiny):
    return replace(tiny, train=replace(tiny.train, epochs=1))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", ["simsiam", "mast+equimod", "byol+equimod", "moco"])
def test_steps_that_do_not_select_are_plain_ones(train_tiny, short, method):
    """To the bit: the first two of many views are those of training on two."""
    plain = train_tiny("plain", config=short, method=method)
    for name, never in (("warmup", 9.0), ("every", 9)):
        config = replace(short, hard_views=HardViewOptions(4, **{name: never}))
        assert same_weights(plain, train_tiny(name, config=config, method=method)), name
    config = replace(short, hard_views=HardViewOptions(4))
    assert not same_weights(plain, train_tiny("hard", config=config, method=method))


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_step_trains_on_the_hardest_pair(train_tiny, short, monkeypatch, mode):
    """By brute force over all pairs with SimSiam's loss, from the weights before the step."""
    expected, trained = [], []
    original = SimSiam.forward

    def before(module, batch, batch_idx):
        backbone, method = copy.deepcopy(module.backbone), copy.deepcopy(module.method)
        if mode == "frozen":
            backbone.eval(), method.eval()
        with torch.no_grad():
            z = method.embed(forward_views(backbone, batch.images))
            p = method.predictor(z.flatten(0, 1)).view_as(z)
        losses = {
            (i, j): -torch.cosine_similarity(p[i], z[j], -1)
            - torch.cosine_similarity(p[j], z[i], -1)
            for i, j in combinations(range(4), 2)
        }
        hardest = torch.stack(list(losses.values())).argmax(0).tolist()
        pairs = [list(losses)[best] for best in hardest]
        expected.append(
            torch.stack(
                [
                    torch.stack([batch.images[pair[slot], b] for b, pair in enumerate(pairs)])
                    for slot in range(2)
                ]
            )
        )

    def look(method, encoded, batch):
        trained.append(batch)
        return original(method, encoded, batch)

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", before)
    monkeypatch.setattr(SimSiam, "forward", look)
    config = replace(short, hard_views=HardViewOptions(4, mode=mode))
    train_tiny(config=config, method="simsiam")
    assert len(trained) == len(expected) == 3
    for batch, images in zip(trained, expected, strict=True):
        assert torch.equal(batch.images, images)
        assert batch.changed is None


def test_metrics_of_steps_that_select(train_tiny, short, tmp_path):
    config = replace(short, hard_views=HardViewOptions(3, every=2))
    train_tiny(config=config, method="vicreg")
    rows = rows_of(tmp_path / "run" / "metrics.csv")
    assert rows[0].keys() >= COLUMNS
    for row, selected in zip(rows, (False, True, False), strict=True):
        assert all((row[name] != "nan") == selected for name in COLUMNS)
    assert float(rows[1]["hard_views/margin"]) > 0
    assert 0 <= float(rows[1]["hard_views/iou"]) <= 1


def test_random_choice_follows_the_seed(train_tiny, short):
    options = HardViewOptions(4, strategy="softmax", temperature=10.0, fraction=0.5)
    config = replace(short, hard_views=options)
    runs = []
    for name in ("a", "b"):
        torch.manual_seed(5)
        runs.append(train_tiny(name, config=config, method="simclr"))
    assert same_weights(*runs)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_weight_learns_in_mixed_precision(train_tiny, short, precision):
    train = replace(short.train, precision=precision)
    config = replace(short, train=train, hard_views=HardViewOptions(4))
    module = train_tiny(config=config, method="simsiam")
    still = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_names_and_forwards(short):
    config = replace(short, method="simclr", hard_views=HardViewOptions(4))
    assert build_networks(config).name == "simclr+hard"
    plain = build_networks(replace(config, hard_views=HardViewOptions()))
    assert (plain.name, plain.hard_views) == ("simclr", None)


def test_refuses_a_size_the_backbone_does_not_take(short):
    transformer = replace(
        short.model,
        name="vit_tiny_patch16_224",
        timm_args={"img_size": 16, "patch_size": 8, "depth": 1},
    )
    options = HardViewOptions(4, size=8)
    config = replace(short, method="simclr", model=transformer, hard_views=options)
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 does not take images of 8 pixels"):
        build_networks(config)
    build_networks(replace(config, hard_views=replace(options, size=None)))
