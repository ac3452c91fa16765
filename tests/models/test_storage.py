"""Backbones in files: those that runs leave, timm's folders, and weights to start from."""

import dataclasses
import json
import math

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from mast_ext.models import (
    BackboneSpec,
    ImageFormat,
    create_backbone,
    load_backbone,
    load_timm_folder,
    load_weights,
    save_backbone,
    stored_image_format,
)

TINY = {"channels": (8, 8, 8, 16), "layers": (1, 1, 1, 1)}


def test_file_rebuilds_the_backbone(tmp_path):
    spec = BackboneSpec("resnet_small", True, {"stem_width": 4, "channels": (8, 8, 8, 16)})
    backbone = spec.create().eval()
    backbone(torch.randn(4, 3, 16, 16))
    save_backbone(backbone, spec, tmp_path / "backbone.safetensors")
    restored, found = load_backbone(tmp_path / "backbone.safetensors")

    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(restored.eval()(images), backbone(images))
    assert found.create()(images).shape == (2, 16)
    assert [p.name for p in tmp_path.iterdir()] == ["backbone.safetensors"]


IMAGES = ImageFormat(48, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def test_the_same_backbone_gives_the_same_bytes(tmp_path):
    """Often enough that safetensors' random order of metadata would show."""
    spec = BackboneSpec("resnet_small")
    backbone = spec.create()
    for i in range(8):
        save_backbone(backbone, spec, tmp_path / f"{i}.safetensors", IMAGES)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)}) == 1
    tensors = load_file(tmp_path / "0.safetensors")
    assert tensors.keys() == backbone.state_dict().keys()
    assert all(tensors[name].equal(value) for name, value in backbone.state_dict().items())


def test_paths_are_strings_too_and_runs(tmp_path):
    spec = BackboneSpec("resnet_small")
    backbone = spec.create()
    file = tmp_path / "backbone.safetensors"  # as every run leaves it
    save_backbone(backbone, spec, str(file), IMAGES)
    for path in (str(file), tmp_path, str(tmp_path)):
        loaded, found = load_backbone(path)
        assert found == spec and stored_image_format(path) == IMAGES
        other = spec.create()
        load_weights(other, path)
        want = backbone.state_dict()["conv1.0.weight"]
        assert all(each.state_dict()["conv1.0.weight"].equal(want) for each in (loaded, other))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty/backbone.safetensors"):
        load_backbone(str(tmp_path / "empty"))


def test_file_says_which_images_it_takes(tmp_path):
    spec = BackboneSpec("resnet18", False, {"channels": [8, 8, 8, 16]})
    path = tmp_path / "backbone.safetensors"
    save_backbone(spec.create(), spec, path)
    assert stored_image_format(path) is None
    save_backbone(spec.create(), spec, path, IMAGES)
    assert stored_image_format(path) == IMAGES
    assert load_backbone(path)[1] == spec


ODD_FORMATS = ["3", "[", "{}", '{"size": 0, "mean": [1], "std": [1]}']
ODD_FORMATS += ['{"size": 8, "mean": [1, 2], "std": [1]}', '{"size": 8, "mean": [1], "std": [0]}']


@pytest.mark.parametrize("text", ODD_FORMATS)
def test_damaged_format_of_images(tmp_path, text):
    path = tmp_path / "odd.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={"images": text})
    with pytest.raises(ValueError, match=r"odd\.safetensors does not say which images it takes"):
        stored_image_format(path)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_folder_of_timm(tmp_path, weights):
    """As timm writes it for its hub, with a classifier, which is left out."""
    torch.manual_seed(0)
    network = timm.create_model("resnet18", channels=(8, 8, 8, 16), num_classes=5)
    arguments = {"channels": (8, 8, 8, 16)}
    save_for_hf(network, tmp_path, model_args=arguments, safe_serialization=weights[0] == "m")
    assert (tmp_path / weights).exists()
    backbone, spec, images = load_timm_folder(tmp_path)
    assert (spec.name, spec.small_images) == ("resnet18", False)
    assert images == ImageFormat(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x = torch.randn(2, 3, 32, 32)
    network.reset_classifier(0)
    assert torch.equal(backbone.eval()(x), network.eval()(x))


ODD_FOLDERS = [
    ({"config.json": '{"model_type": "vit"}'}, ValueError, "config.json does not describe a backb"),
    ({"config.json": "["}, ValueError, "config.json does not describe a backbone of timm"),
    ({"config.json": "[3]"}, ValueError, "config.json does not describe a backbone of timm"),
    ({}, FileNotFoundError, "holds no backbone of timm: it has no config.json"),
    ({"config.json": "GOOD"}, FileNotFoundError, "has no weights: model.safetensors or pytorch_"),
    ({"config.json": "GOOD", "model.safetensors": "x"}, ValueError, "is not a safetensors file"),
]
GOOD = {
    "architecture": "resnet18",
    "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]},
}


@pytest.mark.parametrize(("files", "error", "message"), ODD_FOLDERS)
def test_folders_that_are_not_timms(tmp_path, files, error, message):
    for name, text in files.items():
        (tmp_path / name).write_text(json.dumps(GOOD) if text == "GOOD" else text)
    with pytest.raises(error, match=message):
        load_timm_folder(tmp_path)


@pytest.mark.parametrize("counts", [True, False], ids=["now", "before PyTorch 0.4.1"])
def test_weights_of_torchvision(tmp_path, counts):
    """Its ResNets have timm's names; old files have no counts of batch norm."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    network(torch.randn(4, 3, 32, 32))  # moves batch norm
    weights = network.state_dict()
    kept = {n: w for n, w in weights.items() if counts or "num_batches_tracked" not in n}
    torch.save(kept, tmp_path / "weights.pth")
    backbone, _ = create_backbone("resnet18", weights=tmp_path / "weights.pth")
    network.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone.eval()(x), network.eval()(x))


def test_file_loads_into_plain_timm(tmp_path):
    spec = BackboneSpec("resnet18", False, {"channels": [8, 8, 8, 16]})
    backbone = spec.create()
    save_backbone(backbone, spec, tmp_path / "backbone.safetensors")
    plain = timm.create_model("resnet18", num_classes=0, channels=(8, 8, 8, 16))
    plain.load_state_dict(load_file(tmp_path / "backbone.safetensors"))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.eval()(images), backbone.eval()(images))


def _foreign(path):
    save_file({"weight": torch.zeros(2)}, path)


def _other_weights(path):
    spec = {"name": "resnet_small", "small_images": True, "timm_args": {}}
    metadata = {"format": "mast_ext.backbone.1", "backbone": json.dumps(spec)}
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)


def _spec(**values):
    def write(path):
        spec = {"name": "resnet_small", "small_images": True, "timm_args": {}, **values}
        metadata = {"format": "mast_ext.backbone.1", "backbone": json.dumps(spec)}
        save_file({"weight": torch.zeros(2)}, path, metadata=metadata)

    return write


def _no_spec(path):
    save_file({"w": torch.zeros(2)}, path, metadata={"format": "mast_ext.backbone.1"})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"not a tensor in sight"), "is not a safetensors file"),
        (_foreign, "is not a backbone of mast_ext"),
        (_no_spec, "does not say which backbone it holds"),
        (_spec(name=3), "which backbone it holds: name must be a str, got 3"),
        (_spec(small_images=None), "which backbone it holds: small_images must be a bool"),
        (_spec(timm_args=[1]), r"which backbone it holds: timm_args must be a dict, got \[1\]"),
        (_spec(wings=2), "which backbone it holds: .*wings"),
        (
            _spec(timm_args={"norm_layer": "x"}),
            "timm cannot build 'resnet_small' .*: KeyError: 'x'",
        ),
        (_other_weights, "do not fit the backbone: it has no conv1.0.weight"),
    ],
)
def test_refuses_foreign_files(tmp_path, write, message):
    path = tmp_path / "file.safetensors"
    write(path)
    with pytest.raises(ValueError, match=message):
        load_backbone(path)


def weights_of(backbone):
    return dict(backbone.state_dict())


def saved_export(path, backbone, spec):
    save_backbone(backbone, spec, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def saved_by_torch(wrap):
    def save(path, backbone, spec):
        torch.save(wrap(weights_of(backbone)), path)
        return path

    return save


def of_checkpoint(weights):
    prefixed = {f"backbone.{name}": value for name, value in weights.items()}
    return {"mast_ext": {}, "state_dict": {**prefixed, "method.weight": torch.zeros(2)}}


FILES = {
    "own export": saved_export,
    "state": saved_by_torch(lambda weights: weights),
    "training state": saved_by_torch(lambda weights: {"epoch": 3, "state_dict": weights}),
    "of several processes": saved_by_torch(
        lambda weights: {f"module.{n}": v for n, v in weights.items()}
    ),
    "with a classifier": saved_by_torch(
        lambda weights: {**weights, "fc.weight": torch.zeros(9, 16)}
    ),
    "own checkpoint": saved_by_torch(of_checkpoint),
}


@pytest.mark.parametrize("argument", ["weights", "checkpoint_path"])
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("small", [True, False])
def test_starts_from_weights_with_the_stem(tmp_path, kind, argument, small):
    spec = BackboneSpec("resnet18", small, TINY)
    first = spec.create()
    path = FILES[kind](tmp_path / "weights.pt", first, spec)
    second, _ = create_backbone("resnet18", small, **TINY, **{argument: path})
    assert weights_of(first).keys() == weights_of(second).keys()
    for name, value in weights_of(first).items():
        assert torch.equal(weights_of(second)[name], value), name


def test_export_does_not_name_the_file_that_it_started_from(tmp_path):
    spec = BackboneSpec("resnet18", True, {**TINY, "checkpoint_path": "somewhere.pt"})
    save_backbone(spec.create(), spec, tmp_path / "a.safetensors")
    assert b"somewhere" not in (tmp_path / "a.safetensors").read_bytes()
    load_backbone(tmp_path / "a.safetensors")


def test_older_export_that_names_a_file_loads_alone(tmp_path):
    spec = BackboneSpec("resnet18", True, TINY)
    path = tmp_path / "a.safetensors"
    listed = {**dataclasses.asdict(spec), "timm_args": {**TINY, "checkpoint_path": "gone.pt"}}
    metadata = {"format": "mast_ext.backbone.1", "backbone": json.dumps(listed)}
    save_file(weights_of(spec.create()), path, metadata=metadata)
    assert "checkpoint_path" not in load_backbone(path)[1].timm_args


class Opened:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return (open, ("written", "w"))


NO_START = {  # what is in the file, and the message
    "other stem": (
        lambda path: torch.save(weights_of(BackboneSpec("resnet18", False, TINY).create()), path),
        "conv1.weight must have shape [64, 3, 3, 3], got [64, 3, 7, 7] (small_images changes",
    ),
    "some missing": (
        lambda path: torch.save({"conv1.weight": torch.zeros(64, 3, 3, 3)}, path),
        "it has no bn1.weight, bn1.bias, bn1.running_mean and ",
    ),
    "more": (
        lambda path: torch.save(
            {**weights_of(BackboneSpec("resnet18", True, TINY).create()), "x": torch.zeros(1)}, path
        ),
        "there is no place for x",
    ),
    "a number": (lambda path: torch.save(3, path), "holds no weights by name, but a int"),
    "numbers": (lambda path: torch.save({"a": 3}, path), "holds other things than weights"),
    "code": (lambda path: torch.save(Opened(), path), "is damaged or holds more than weights"),
    "words": (lambda path: path.write_bytes(b"words"), "is damaged or holds more than weights"),
    "nothing": (lambda path: path.write_bytes(b""), "is damaged or holds more than weights"),
}


@pytest.mark.parametrize("kind", NO_START)
def test_weights_that_do_not_fit_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    write, message = NO_START[kind]
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(ValueError) as error:
        create_backbone("resnet18", True, weights=path, **TINY)
    assert message in str(error.value) and str(path) in str(error.value)
    assert not (tmp_path / "written").exists()


def test_names_missing_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file of weights at .*nowhere\.pt"):
        create_backbone("resnet18", weights=tmp_path / "nowhere.pt")


def test_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        load_backbone(tmp_path / "nowhere.safetensors")


def test_made_up_images_are_on_the_host():
    images = ImageFormat(8, (0.5,), (0.5,))
    want = images.example()
    with torch.device("meta"):
        assert torch.equal(images.example().to("cpu"), want)


@pytest.mark.parametrize("wrong", [{"size": 7.9}, {"mean": [math.nan]}, {"std": [math.inf]}])
def test_images_of_a_file_are_described_by_numbers(wrong):
    values = {"size": 8, "mean": [0.5], "std": [0.2], **wrong}
    with pytest.raises(ValueError, match="images must have size, mean and std, got"):
        ImageFormat.parse(values)
