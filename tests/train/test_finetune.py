import copy

import numpy as np
import pytest
import torch
from torch import nn

from mast_ext.augment import AugmentationRecipe
from mast_ext.data import open_source
from mast_ext.models import create_backbone
from mast_ext.train.config import FinetuneConfig
from mast_ext.train.errors import RunError
from mast_ext.train.evaluation import finetune as module
from mast_ext.train.evaluation.finetune import finetune, learning_rates, training_recipe
from mast_ext.train.evaluation.images import LabeledImages
from mast_ext.train.evaluation.scores import accuracy

RECIPE = AugmentationRecipe(size=16)


class Colors:
    """Images of noise on two colors, by which the classes differ, some of them with more green."""

    name = "folder"
    skipped = ()
    channels, bits = 3, 8

    def __init__(self, count, seed, factors=("class",)):
        generator = np.random.default_rng(seed)
        labels = {"class": np.arange(count) % 2, "green": np.arange(count) // 2 % 2}
        self.labels = {name: labels[name] for name in factors}
        self.classes = {name: ["no", "yes"] for name in factors}
        self.sizes = np.full((count, 2), 16, np.int32)
        pixels = generator.integers(0, 180, (count, 3, 16, 16), dtype=np.uint8)
        for image, label, green in zip(pixels, *labels.values(), strict=True):
            image[2 * label] += 60
            image[1] += np.uint8(60 * green)
        self.stacked = torch.from_numpy(pixels)

    def __len__(self):
        return len(self.stacked)

    def image(self, index):
        return self.stacked[index]


@pytest.fixture(scope="module")
def colors():
    return LabeledImages(Colors(60, 0), Colors(40, 1))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return create_backbone("resnet_small", True, channels=(8, 8, 8, 16), stem_width=4)[0]


@pytest.fixture
def small():
    """A network that is quick, with batch norm."""
    torch.manual_seed(0)
    layers = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU())
    return nn.Sequential(*layers)


def test_learns_what_labels_say(colors, backbone):
    config = FinetuneConfig(epochs=40, batch_size=16, lr=0.3, head_lr=0.3)
    found = finetune(backbone, colors, RECIPE, config, 0.5)
    assert found.images == 30 and found.steps == 40  # one full batch of 30 an epoch
    assert accuracy(found.predictions["class"], colors.test_labels["class"]) > 0.9


def test_ids_of_classes_may_be_any(colors, small):
    """The classes' own count decides how wide the classifier is, and how it is initialized."""
    config, far = FinetuneConfig(epochs=2, batch_size=16), np.array([3, 1 << 20])
    plain = finetune(small, colors, RECIPE, config, 0.5)
    sources = (copy.copy(colors.train), copy.copy(colors.test))
    for source in sources:
        source.labels = {"class": far[source.labels["class"]]}
    found = finetune(small, LabeledImages(*sources), RECIPE, config, 0.5)
    assert torch.equal(
        found.predictions["class"], torch.from_numpy(far)[plain.predictions["class"]]
    )


def test_the_same_again_and_nothing_is_left_behind(colors, small):
    """Of the network, the random numbers, and torch's choice of operators."""
    weights = copy.deepcopy(small.state_dict())
    training, state = small.training, torch.get_rng_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    config = FinetuneConfig(epochs=4, batch_size=16)
    steps = []
    found = [
        finetune(small, colors, RECIPE, config, 1.0, progress=lambda done, all: steps.append(done))
        for _ in range(2)
    ]
    assert torch.equal(found[0].predictions["class"], found[1].predictions["class"])
    assert steps == [*range(1, 13)] * 2
    assert all(torch.equal(weights[name], value) for name, value in small.state_dict().items())
    assert small.training == training and torch.equal(state, torch.get_rng_state())
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_transformers_at_other_sizes_have_deterministic_gradients(colors, monkeypatch):
    """torch has no deterministic gradient of timm's interpolation on a GPU."""
    own = nn.functional.interpolate

    def interpolate(x, *args, **options):
        assert not (x.requires_grad and torch.is_grad_enabled())
        return own(x, *args, **options)

    monkeypatch.setattr(nn.functional, "interpolate", interpolate)
    tiny = {"depth": 1, "embed_dim": 16, "num_heads": 2}
    transformer, _ = create_backbone("vit_small_images", **tiny)  # of 32 pixels
    finetune(transformer, colors, RECIPE, FinetuneConfig(epochs=1, batch_size=16), 1.0)


def test_seed_decides(colors, small):
    """Which images have labels; and so what is learned from few of them."""
    found = [
        finetune(small, colors, RECIPE, FinetuneConfig(epochs=8, seed=seed), 0.1) for seed in (0, 1)
    ]
    assert not torch.equal(found[0].predictions["class"], found[1].predictions["class"])


def test_several_factors_are_learned_by_one_network(small):
    factors = ("class", "green")
    images = LabeledImages(Colors(60, 0, factors), Colors(40, 1, factors))
    config = FinetuneConfig(epochs=20, batch_size=16, lr=0.3, head_lr=0.3)
    found = finetune(small, images, RECIPE, config, 1.0).predictions
    assert list(found) == list(factors)
    assert all(accuracy(found[name], images.test_labels[name]) > 0.9 for name in factors)


def test_images_whose_labels_views_would_change_stay_as_they_are(colors):
    shapes = open_source("shapes", "train", size=16, max_images=8)
    assert training_recipe(RECIPE, shapes).augmentations == ()
    assert training_recipe(RECIPE, colors.train).augmentations == ("crop", "flip")
    assert training_recipe(RECIPE.only("color"), colors.train).augmentations == ()


@pytest.mark.parametrize(
    ("settings", "share", "steps"),
    [({}, 1.0, 500), ({"epochs": 2.5, "batch_size": 10}, 1.0, 15), ({"epochs": 0.01}, 1.0, 1)],
)
def test_steps(colors, settings, share, steps, monkeypatch):
    monkeypatch.setattr(module, "_train", lambda *arguments: None)
    found = finetune(nn.Flatten(), colors, RECIPE, FinetuneConfig(**settings), share)
    assert found.steps == steps


def test_rates_are_those_of_vicreg_unless_they_are_chosen():
    assert learning_rates(FinetuneConfig(), 0.01) == (0.03, 0.08)
    assert learning_rates(FinetuneConfig(), 0.1) == (0.01, 0.1)
    assert learning_rates(FinetuneConfig(lr=1.0), 0.01) == (1.0, 0.08)
    assert learning_rates(FinetuneConfig(head_lr=2.0), 1.0) == (0.01, 2.0)


def test_rates_per_256_images_of_backbone_and_classifier(colors, monkeypatch):
    made = []

    class Noted(torch.optim.SGD):
        def __init__(self, groups, **settings):
            super().__init__(groups, **settings)
            made.append((self.param_groups[0]["lr"], self.param_groups[1]["lr"], settings))

    monkeypatch.setattr(module, "SGD", Noted)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    finetune(backbone, colors, RECIPE, FinetuneConfig(epochs=1, batch_size=32), 1.0)
    assert made == [(0.01 / 8, 0.1 / 8, {"momentum": 0.9})]


def test_divergence_is_said(colors, small):
    config = FinetuneConfig(epochs=4, batch_size=16, lr=1e30)
    said = r"fine-tuning with 100% of the labels diverged: .* \(1e\+30\)"
    with pytest.raises(RunError, match=said):
        finetune(small, colors, RECIPE, config, 1.0)


def test_autocast(colors, small):
    config = FinetuneConfig(epochs=40, batch_size=16, lr=0.3, head_lr=0.3, precision="bf16-mixed")
    found = finetune(small, colors, RECIPE, config, 1.0)
    assert accuracy(found.predictions["class"], colors.test_labels["class"]) > 0.9


def test_on_the_device(colors, backbone, device):
    """On a GPU, too, with threads that render ahead."""
    config = FinetuneConfig(epochs=12, batch_size=16, lr=0.3, head_lr=0.3)
    found = [
        finetune(backbone, colors, RECIPE, config, 1.0, device=device, workers=2).predictions
        for _ in range(2)
    ]
    assert torch.equal(found[0]["class"], found[1]["class"])
    assert accuracy(found[0]["class"], colors.test_labels["class"]) > 0.75
