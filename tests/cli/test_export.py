import pytest
import timm
import torch

from mast_ext.models import load_backbone


@pytest.fixture
def large_stem(call, tiny, shapes):
    """A run whose backbone timm can build."""
    options = ["--method=simclr", "--baseline=none", "--model.small_images=false", "--out=run"]
    status, _, err = call("pretrain", *tiny, *shapes, *options)
    assert status == 0, err
    return "run"


def test_timm_reads_the_run(large_stem, call, tmp_path):
    status, out, err = call("export", large_stem, "--format=timm")
    assert status == 0, err
    folder = tmp_path / "run" / "backbone-timm"
    assert f'timm.create_model("local-dir:{folder}", pretrained=True)' in out
    assert "16 pixels wide" in out
    want, _ = load_backbone(tmp_path / "run" / "backbone.safetensors")
    x = torch.randn(2, 3, 16, 16)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    torch.testing.assert_close(network.eval()(x), want.eval()(x))


def test_checkpoints_are_exported_too(trained, call, tmp_path):
    checkpoint = next((trained / "checkpoints").glob("*.ckpt"))
    out_file = tmp_path / "b.pt"
    status, _, err = call("export", str(checkpoint), "--format=torchscript", f"--out={out_file}")
    assert status == 0, err
    want, _ = load_backbone(trained / "backbone.safetensors")
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(torch.jit.load(out_file)(x), want.eval()(x))


def test_nothing_of_a_run_is_replaced(trained, call):
    for path in (trained / "backbone.safetensors", *(trained / "checkpoints").glob("*.ckpt")):
        before = path.read_bytes()
        status, _, err = call("export", str(trained), "--format=torchscript", f"--out={path}")
        assert status == 1 and "is there and no exported backbone" in err
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nowhere", "--format=timm"], 1, "nowhere"),
        (["RUN"], 2, "--format is missing: one of timm, hf, torchscript, onnx"),
        (["RUN", "--format=tflite"], 2, "tflite"),
        (["RUN", "--format=timm"], 1, "timm builds no such stem; torchscript and onnx can"),
        (["RUN", "--format=hf"], 1, "the format hf cannot hold resnet_small with small_images: "),
    ],
)
def test_what_cannot_be_exported(arguments, status, message, trained, call):
    arguments = [str(trained) if word == "RUN" else word for word in arguments]
    found, _, err = call("export", *arguments)
    assert found == status and message in err and "Traceback" not in err


def test_help(call):
    status, out, _ = call("export", "--help")
    assert status == 0 and "torchscript" in out
