import json

import pytest
import timm
import torch

from mast_ext.models import ImageFormat, export
from mast_ext.models.backbones import BackboneSpec
from mast_ext.models.export import export_backbone

NARROW = {"channels": (8, 8, 8, 16), "stem_width": 4}
IMAGES = ImageFormat(32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
GRAY = ImageFormat(32, (0.5,), (0.2,))
SPECS = {
    "resnet": (BackboneSpec("resnet_small", False, NARROW), IMAGES),
    "gray": (BackboneSpec("resnet_small", False, {**NARROW, "in_chans": 1}), GRAY),
    "vit": (BackboneSpec("vit_small_images", False, {"depth": 1}), IMAGES),
    "small stem": (BackboneSpec("resnet_small", True, NARROW), IMAGES),
}


def trained(name):
    torch.manual_seed(0)
    spec, images = SPECS[name]
    backbone = spec.create()
    backbone(torch.randn(4, len(images.mean), images.size, images.size))  # moves batch norm
    return backbone, spec, images


def read(kind, path):
    """As a user would."""
    if kind in ("timm", "hf"):
        return timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    if kind == "torchscript":
        return torch.jit.load(path)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path))
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


READ_BACK = [(name, kind) for name in SPECS for kind in ("timm", "torchscript")]
READ_BACK.remove(("small stem", "timm"))
READ_BACK += [("gray", "onnx"), ("vit", "onnx")]  # takes seconds each


@pytest.mark.parametrize(("name", "kind"), READ_BACK)
def test_features_are_those_of_the_backbone(name, kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    backbone, spec, images = trained(name)
    path = tmp_path / "new" / "exported"
    export_backbone(backbone, spec, images, path, kind)
    assert [each.name for each in path.parent.iterdir()] == ["exported"]
    assert backbone.training  # as it was
    network = read(kind, path)
    backbone.eval()
    for count in (1, 5):
        x = torch.randn(count, len(images.mean), images.size, images.size)
        with torch.inference_mode():
            torch.testing.assert_close(network(x), backbone(x), rtol=1e-3, atol=1e-4)


def test_timm_learns_what_images_it_takes(tmp_path):
    backbone, spec, images = trained("resnet")
    export_backbone(backbone, spec, images, tmp_path / "hf", "hf")
    network = timm.create_model(f"local-dir:{tmp_path / 'hf'}", pretrained=True)
    config = timm.data.resolve_model_data_config(network)
    found = [tuple(config[name]) for name in ("input_size", "mean", "std")]
    assert found == [(3, 32, 32), images.mean, images.std]
    assert config["crop_pct"] == 1.0
    # With a classifier, as for fine-tuning.
    network = timm.create_model(f"local-dir:{tmp_path / 'hf'}", pretrained=True, num_classes=7)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_torchscript_says_what_images_it_takes(tmp_path):
    backbone, spec, images = trained("small stem")
    for kind in ("timm", "torchscript", "torchscript", "timm"):  # one replaces the other
        export_backbone(*trained("resnet"), tmp_path / "b.pt", kind)
    export_backbone(backbone, spec, images, tmp_path / "b.pt", "torchscript")
    files = {"mast_ext.json": ""}
    torch.jit.load(tmp_path / "b.pt", _extra_files=files)
    found = json.loads(files["mast_ext.json"])
    assert found["images"] == {"size": 32, "mean": [*images.mean], "std": [*images.std]}
    assert found["backbone"]["name"] == "resnet_small"


@pytest.mark.parametrize("kind", ["timm", "hf"])
def test_a_stem_that_timm_lacks_is_refused(tmp_path, kind):
    message = f"format {kind} cannot hold .* timm builds no such stem; torchscript and onnx can"
    with pytest.raises(ValueError, match=message):
        export_backbone(*trained("small stem"), tmp_path / "b", kind)


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one of timm, hf, torchscript, onnx, got 'tflite'"):
        export_backbone(*trained("resnet"), tmp_path / "b", "tflite")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"onnx needs the package onnx: pip install"):
        export_backbone(*trained("resnet"), tmp_path / "b", "onnx")


@pytest.mark.parametrize("kind", ["timm", "torchscript"])
@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": "mine", "config.json": '{"mast_ext": 1}', "model.safetensors": ""},
        {"config.json": '{"model_type": "mast_ext"}', "model.safetensors": ""},  # of transformers
        {"config.json": "not JSON", "model.safetensors": ""},
        "import mast_ext  # writes mast_ext.json",
    ],
    ids=["work", "model", "odd model", "file"],
)
def test_what_others_wrote_is_left_alone(files, kind, tmp_path):
    path = tmp_path / "b"
    if isinstance(files, str):
        path.write_text(files)
    else:
        path.mkdir()
        for name, text in files.items():
            (path / name).write_text(text)
    with pytest.raises(ValueError, match="no exported backbone: it is left as it is"):
        export_backbone(*trained("resnet"), path, kind)
    found = [path] if path.is_file() else [*path.iterdir()]
    texts = {each.name: each.read_text() for each in found}
    assert texts == (files if isinstance(files, dict) else {"b": files})


def test_each_program_is_told_its_own_way(tmp_path):
    """Of the same folder."""
    found = {
        kind: export_backbone(*trained("resnet"), tmp_path / "b", kind) for kind in ("timm", "hf")
    }
    assert found == {
        "timm": f'timm.create_model("local-dir:{tmp_path / "b"}", pretrained=True)',
        "hf": f'transformers.AutoModel.from_pretrained("{tmp_path / "b"}")',
    }


def test_transformers_read_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    backbone, spec, images = trained("resnet")
    reading = export_backbone(backbone, spec, images, tmp_path / "hf", "hf")
    network = eval(reading, {"transformers": transformers}).eval()  # as the program says
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(x).pooler_output, backbone(x))


@pytest.mark.parametrize("kind", ["timm", "torchscript"])
def test_what_gives_other_features_is_not_kept(kind, tmp_path, monkeypatch):
    backbone, spec, images = trained("resnet")
    export_backbone(backbone, spec, images, tmp_path / "b", kind)
    before = [each for each in tmp_path.rglob("*") if each.is_file()]
    kept = [each.read_bytes() for each in before]
    monkeypatch.setattr(torch, "allclose", lambda *_, **__: False)
    with pytest.raises(RuntimeError, match="gives other features than the backbone"):
        export_backbone(SPECS["resnet"][0].create(), spec, images, tmp_path / "b", kind)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == before
    assert [each.read_bytes() for each in before] == kept
