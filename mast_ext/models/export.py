"""Writes a trained backbone in the formats of other programs, and reads it back to compare."""

import copy
import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mast_ext.models.backbones import PRESETS, BackboneSpec
from mast_ext.models.images import ImageFormat

_OPSET = 18
_MARK = "mast_ext"  # the key in timm's config.json under which stands what was exported
_FILE = f"{_MARK}.json"  # the same as an entry of TorchScript and ONNX files


def export_backbone(
    backbone: nn.Module, spec: BackboneSpec, images: ImageFormat, path: Path, kind: str
) -> str:
    """Writes a backbone, reads it back, and compares its features with those of the original.

    Args:
        backbone: What `spec` describes, trained.
        spec: See `BackboneSpec`.
        images: What it was trained on; stored beside the weights.
        path: The folder (``timm``) or file to write. What was exported there before is replaced.
        kind: ``timm``, or ``hf``, which is the same: a folder that
            ``timm.create_model("local-dir:PATH", pretrained=True)`` and, of transformers,
            ``AutoModel.from_pretrained(PATH)`` read. ``torchscript``: a file for
            ``torch.jit.load``. ``onnx``: a file for ONNX runtimes. The last two take any number of
            images.

    Returns:
        How it is read, as a line of Python.

    Raises:
        ValueError: ``kind`` is unknown; or ``timm`` or ``hf``, and timm does not have the stem;
            or what is at ``path`` was not exported.
        ModuleNotFoundError: A package that the format needs is missing; the message names it.
        RuntimeError: What was read back gives other features.
    """
    if kind not in _WRITERS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}, got {kind!r}")
    network = copy.deepcopy(backbone).cpu().float().eval()
    return _WRITERS[kind](network, spec, images, path)


def _timm(network: nn.Module, spec: BackboneSpec, images: ImageFormat, path: Path) -> str:
    return _timm_folder(network, spec, images, path, "timm")


def _timm_folder(
    network: nn.Module, spec: BackboneSpec, images: ImageFormat, path: Path, kind: str
) -> str:
    if spec.small_images:
        raise ValueError(
            f"the format {kind} cannot hold {spec.name} with small_images: timm builds no such"
            " stem; torchscript and onnx can"
        )
    preset = PRESETS.get(spec.name)
    timms: Any = network.pretrained_cfg
    config = {
        "architecture": preset.timm_name if preset else spec.name,
        "num_classes": 0,
        "num_features": network.num_features,
        _MARK: _described(spec, images),
        "model_args": {**(preset.timm_args if preset else {}), **spec.timm_args},
        "pretrained_cfg": {
            "input_size": (len(images.mean), images.size, images.size),
            "mean": images.mean,
            "std": images.std,
            "crop_pct": 1.0,
            "num_classes": 0,
            # Names of layers, which timm replaces for other images or classes.
            **{name: timms[name] for name in ("first_conv", "classifier") if name in timms},
        },
    }
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    with _replacing(path) as partial:
        partial.mkdir()
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        read = timm.create_model(f"local-dir:{partial}", pretrained=True).eval()
        _compare(network, read, images, path)
    return f'timm.create_model("local-dir:{path}", pretrained=True)'


def _hf(network: nn.Module, spec: BackboneSpec, images: ImageFormat, path: Path) -> str:
    # transformers reads timm's folders, through timm
    _timm_folder(network, spec, images, path, "hf")
    return f'transformers.AutoModel.from_pretrained("{path}")'


def _torchscript(network: nn.Module, spec: BackboneSpec, images: ImageFormat, path: Path) -> str:
    described = {_FILE: json.dumps(_described(spec, images))}
    with _replacing(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have torch.export
        traced: Any = torch.jit.trace(network, images.example()[:2])
        torch.jit.save(traced, partial, _extra_files=described)
        _compare(network, torch.jit.load(partial), images, path)
    return f'torch.jit.load("{path}")'


def _onnx(network: nn.Module, spec: BackboneSpec, images: ImageFormat, path: Path) -> str:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"the format onnx needs the package {package}: pip install 'mast-ext[onnx]'"
            )
    import onnx
    import onnxruntime

    with _replacing(path) as partial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that are not installed
            program: Any = torch.onnx.export(
                network,
                (images.example()[:2],),
                dynamo=True,
                opset_version=_OPSET,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        model = program.model_proto
        described = json.dumps(_described(spec, images))
        onnx.helper.set_model_props(model, {_FILE: described})
        onnx.save(model, str(partial))
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])

        def read(x: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])

        _compare(network, read, images, path)
    return f'onnxruntime.InferenceSession("{path}")'


_Writer = Callable[[nn.Module, BackboneSpec, ImageFormat, Path], str]
_WRITERS: dict[str, _Writer] = {
    "timm": _timm,
    "hf": _hf,
    "torchscript": _torchscript,
    "onnx": _onnx,
}

FORMATS = tuple(_WRITERS)


def _described(spec: BackboneSpec, images: ImageFormat) -> dict[str, Any]:
    return {"backbone": vars(spec), "images": vars(images)}


@torch.inference_mode()
def _compare(
    network: nn.Module, read: Callable[[Tensor], Tensor], images: ImageFormat, path: Path
) -> None:
    x = images.example()
    want, found = network(x), read(x)
    if want.shape != found.shape or not torch.allclose(found, want, rtol=1e-3, atol=1e-4):
        raise RuntimeError(f"{path} gives other features than the backbone; it was not kept")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives a name to write under, and moves what was written to ``path`` if nothing failed."""
    path = path.resolve()
    if path.exists() and not _is_exported(path):
        raise ValueError(f"{path} is there and no exported backbone: it is left as it is")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    try:
        yield partial
        _remove(path)
        partial.replace(path)
    finally:
        _remove(partial)


def _is_exported(path: Path) -> bool:
    """Whether a path holds an earlier export (or an empty folder), which may be replaced."""
    if path.is_dir():
        names = {each.name for each in path.iterdir()}
        return not names or (names == {"config.json", "model.safetensors"} and _is_our_config(path))
    # A TorchScript file is a zip archive, and an ONNX file begins with the tag of its first field.
    # Both have the name of our entry near their end; a run's checkpoint, a zip archive, too, has it
    # nowhere.
    with path.open("rb") as file:
        kind = file.read(4)
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        end = file.read()
    return kind.startswith((b"PK\x03\x04", b"\x08")) and _FILE.encode() in end


def _is_our_config(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except ValueError:
        return False
    return isinstance(config, dict) and _MARK in config


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
