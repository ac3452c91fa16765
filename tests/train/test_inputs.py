"""What images ask of the settings, and how they are shown."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mast_ext.augment import AugmentationRecipe
from mast_ext.data import open_source
from mast_ext.train.config import DEFAULT_AUGMENTATION, DataConfig, ModelConfig
from mast_ext.train.evaluation.images import open_images
from mast_ext.train.evaluation.views import shown
from mast_ext.train.inputs import fitted, much_reduced
from mast_ext.train.networks import build_networks
from mast_ext.train.waiting import told_while_waiting


@pytest.fixture
def arrays(tmp_path):
    """Makes a source of constant images ``[N, 8, 8, C]``, of so many levels."""

    def arrays(*levels, dtype=np.uint8):
        images = np.ones((20, 8, 8, len(levels)), dtype) * np.array(levels, dtype)
        images[::2] = 0
        np.save(tmp_path / "images.npy", images)
        return open_source("numpy", "train", path=tmp_path / "images.npy")

    return arrays


@pytest.fixture
def config(tiny):
    return replace(tiny, method="simclr")


def test_settings_for_rgb_stay_as_they_are(arrays, config):
    assert fitted(config, arrays(9, 9, 9)) == (config, "")


@pytest.mark.parametrize("channels", [1, 2, 13])
def test_changes_of_color_are_left_out_by_name(arrays, config, channels):
    plain = replace(config.augment, mean=(0.5,) * channels, std=(0.2,) * channels)
    source = arrays(*range(channels))
    found, note = fitted(replace(config, augment=plain), source)
    assert found.augment == plain.without_color()
    assert note.startswith(f"not applied, since images of {channels} channel")
    assert note.endswith(": augment.saturation, augment.hue, augment.grayscale")
    assert found.augment.varies("brightness") and found.augment.varies("contrast")
    assert fitted(found, source) == (found, "")


@pytest.mark.parametrize(("side", "told"), [(128, False), (129, True)])
def test_photographs_much_larger_than_views_are_told(config, tmp_path, side, told):
    np.save(tmp_path / "images.npy", np.zeros((4, side, 200, 3), np.uint8))
    source = open_source("numpy", "train", path=tmp_path / "images.npy")
    assert config.augment.size == 16  # not by default
    assert much_reduced(config, source) == []
    notes = much_reduced(replace(config, augment=DEFAULT_AUGMENTATION["shapes"]), source)
    assert len(notes) == told
    if told:
        assert notes[0].startswith("images of 129 pixels (the median of their shorter sides) are")
        assert "trained on at 32: --augment.size" in notes[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("levels", [(200,), (0,), (50, 100), tuple(range(13))], ids=str)
def test_wrong_number_of_means_is_answered_with_what_is_measured(arrays, config, levels, dtype):
    source = arrays(*levels, dtype=dtype)
    pixels = np.stack([source.image(i).numpy() for i in range(len(source))]) / np.iinfo(dtype).max
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clip(min=1e-3)
    with pytest.raises(ValueError) as caught:
        fitted(config, source)
    message = str(caught.value)
    assert f"have 3 numbers, and the images have {len(levels)} channel" in message
    for name, values in (("mean", mean), ("std", std)):
        assert f"--augment.{name}=[{','.join(f'{x:.4f}' for x in values)}]" in message
    assert ("--data.channels=3" in message) == (len(levels) == 1)


def test_network_has_the_channels_of_the_images(config):
    recipe = replace(config.augment, mean=(0.5,) * 5, std=(0.2,) * 5).without_color()
    config = replace(config, augment=recipe)
    networks = build_networks(config)
    assert networks.spec.channels == 5
    assert networks.backbone(torch.zeros(2, 5, 16, 16)).shape[0] == 2
    same = replace(config, model=ModelConfig(timm_args={**config.model.timm_args, "in_chans": 5}))
    assert build_networks(same).spec.channels == 5
    other = replace(config, model=ModelConfig(timm_args={"in_chans": 4}))
    with pytest.raises(ValueError, match="in_chans is 4, and augment.mean has 5 numbers"):
        build_networks(other)


def test_spec_of_rgb_names_no_channels(config):
    """As that of older runs, whose checkpoints it has to fit."""
    assert "in_chans" not in build_networks(config).spec.timm_args


@pytest.mark.parametrize("name", ["resnet18", "vit_small_images"])
@pytest.mark.parametrize("channels", [1, 13])
def test_every_backbone_takes_them(config, name, channels):
    recipe = AugmentationRecipe(size=32, mean=(0.5,) * channels, std=(0.2,) * channels)
    model = ModelConfig(name)
    method = "ibot" if name.startswith("vit") else "simclr"
    config = replace(config, augment=recipe.without_color(), model=model, method=method)
    networks = build_networks(config)
    assert networks.backbone.eval()(torch.zeros(1, channels, 32, 32)).ndim == 2


def test_ibot_hides_patches_of_a_network_with_a_feature_map(config):
    """By a color of as many channels."""
    recipe = replace(config.augment, mean=(0.5,) * 4, std=(0.2,) * 4, size=32).without_color()
    model = ModelConfig("resnet18", small_images=True)
    networks = build_networks(replace(config, augment=recipe, model=model, method="ibot"))
    assert networks.method.hidden_token().shape == (4,)


def test_test_images_are_read_as_those_to_train_on(tmp_path):
    """Here in gray of 16 bits, though they are in color of 8."""
    from PIL import Image

    for split, shape, dtype in (("train", (8, 8), np.uint16), ("test", (8, 8, 3), np.uint8)):
        for name in "ab":
            for i in range(4):
                place = tmp_path / split / name
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full(shape, 200, dtype)).save(place / f"{i}.png")
    labeled = open_images(DataConfig("folder", str(tmp_path))).labeled
    assert labeled.test.image(0).shape == (1, 8, 8) and labeled.test.bits == 16
    assert (labeled.test.image(0).numpy() == 200 * 257).all()


def test_images_that_lose_depth_are_counted(tmp_path):
    from PIL import Image

    (tmp_path / "train").mkdir()
    for i, dtype in enumerate((np.uint16, np.uint8, np.uint8)):
        Image.fromarray(np.zeros((8, 8), dtype)).save(tmp_path / f"train/{i}.png")
    (note,) = open_images(DataConfig("folder", str(tmp_path))).notes
    assert note.startswith("1 images of 16 bits are read with 8 in train")
    assert open_images(DataConfig("folder", str(tmp_path), bits=16)).notes == []


@pytest.mark.parametrize("channels", [1, 2, 3, 13])
def test_views_are_shown_in_color_or_gray(channels):
    pixels = torch.rand(4, 2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    found = shown(pixels)
    assert found.shape == (4, 2, 3, 8, 8) and found.min() >= 0 and found.max() <= 1
    if channels == 3:
        assert torch.equal(found, pixels)
    else:
        assert found.amax((0, 1, 3, 4)).tolist() == [1, 1, 1]
        assert torch.equal(found[:, :, 0], found[:, :, 1]) == (channels < 3)


def test_dark_views_are_brightened():
    pixels = torch.rand(1, 1, 3, 8, 8) * 4095 / 65535
    assert shown(pixels).amax() == 1
    assert shown(torch.zeros(1, 1, 1, 4, 4)).abs().max() == 0


class Screen:
    """A terminal, or none, that keeps what is written to it."""

    def __init__(self, terminal):
        import io

        from rich.console import Console

        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=terminal, width=80)


@pytest.mark.parametrize(("terminal", "patience"), [(True, 0.0), (True, 60.0), (False, 0.0)])
def test_a_line_appears_on_a_terminal_after_a_while_alone(monkeypatch, terminal, patience):
    import time

    monkeypatch.setattr("mast_ext.train.waiting.PATIENCE", patience)
    screen = Screen(terminal)
    with told_while_waiting(screen.console, "opening [the] images") as tell:
        deadline = time.monotonic() + 10
        while terminal and not patience and "opening" not in screen.file.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        tell("reading 3 of 4")
        while terminal and not patience and "reading 3 of 4" not in screen.file.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    written = screen.file.getvalue()
    assert ("opening [the] images" in written) == (terminal and not patience)
    if not terminal or patience:
        assert written == ""
    else:
        assert written.endswith("\x1b[2K")  # the line is wiped
