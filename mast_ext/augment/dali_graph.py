"""The DALI graph that renders parameter rows: one decoded image, one chain of operators per view.

The graph draws nothing: every argument of every operator is an input, so it is the same for all
policies. What a view's recipe switches off is not in it; any other operation stands under an ``if``
on its gate, and costs only the images that have it.

Its cost on the CPU is the number of operators, and that of converting floats to levels: five times
an addition's. Hence arguments are computed by whoever feeds them, and `brightness_contrast` and
`coord_transform`, which take and give levels, do what arithmetic could.

Functions here are compiled by DALI from their source text (`if` on a node splits the batch), so
they must be plain functions in a file.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, math, pipeline_def, types

from mast_ext.augment.recipe import AugmentationRecipe

Node = Any  # nvidia.dali.data_node.DataNode, or a number

_KINDS = {  # type and number of dimensions of what may be an input of a view
    **dict.fromkeys(("anchor", "shape"), (types.INT32, 1)),  # (y, x), (height, width) of the crop
    "mirror": (types.INT32, 0),
    **dict.fromkeys(("colored", "jitter", "grayscale", "blur", "solarize"), (types.BOOL, 0)),
    **dict.fromkeys(("brightness", "contrast", "saturation", "hue", "sigma"), (types.FLOAT, 0)),
}

_DOWN = -0.4999 / 255  # of the range of levels: shifts them so that to round is to truncate

_JITTER = ("brightness", "contrast", "saturation", "hue")


def input_names(recipe: AugmentationRecipe, photometric: str) -> tuple[str, ...]:
    """Inputs of a view: its crop, and those of the augmentations that its recipe switches on.

    ``anchor`` and ``shape`` are pairs (y, x) and (height, width) of pixels; ``mirror`` is 0 or 1;
    the other inputs are the columns of their names, but:

    * the hue's shift is in sixths of a turn (``exact``) or in degrees (``fused``);
    * in fused mode, ``colored`` is whether there is jitter or gray, and gray is a saturation of 0.
    """
    jitter = _JITTER if recipe.channels == 3 else _JITTER[:2]
    changes: dict[str, tuple[str, ...]] = {
        "crop": (),
        "flip": ("mirror",),
        "color": ("jitter", *jitter),
        "grayscale": ("grayscale",),
        "blur": ("blur", "sigma"),
        "solarize": ("solarize",),
    }
    if photometric == "fused":
        changes["color"] = changes["grayscale"] = ("colored", *_JITTER)
    names = (name for augmentation in recipe.augmentations for name in changes[augmentation])
    return ("anchor", "shape", *dict.fromkeys(names))


def input_name(view: int, name: str) -> str:
    """Name of an input of a view."""
    return f"view{view}_{name}"


@pipeline_def(enable_conditionals=True)
def build_graph(
    recipes: Sequence[AugmentationRecipe], *, encoded: bool, photometric: str, gpu: bool
) -> tuple[Node, ...]:
    """Views of a batch of images.

    The input ``image`` is ``[n]`` uint8 (an encoded file, gray or RGB) or ``[H, W, C]`` uint8.

    Args:
        recipes: What may be done to every view, its size and normalization.
        encoded: Whether images come as files.
        photometric: ``exact`` or ``fused``, see `mast_ext.augment.dali`.
        gpu: Whether to decode (files: by ``mixed``) and render on the GPU.

    Returns:
        For every view a batch of ``[C, S, S]`` float32; then, of files, the shapes ``[3]`` int64
        that they were decoded to.
    """
    image = fn.external_source(
        name="image", dtype=types.UINT8, ndim=1 if encoded else 3, layout="" if encoded else "HWC"
    )
    if encoded:
        image = _decode(image, gpu, recipes[0].channels)
    elif gpu:
        image = image.gpu()
    views = [
        _view(image, _inputs(view, recipe, photometric), recipe, photometric, gpu)
        for view, recipe in enumerate(recipes)
    ]
    return (*views, image.shape()) if encoded else tuple(views)


@pipeline_def
def build_decoder(*, gpu: bool, channels: int) -> Node:
    """Pixels ``[H, W, 1 or 3]`` uint8 of the input ``image``, a batch of files."""
    return _decode(fn.external_source(name="image", dtype=types.UINT8, ndim=1), gpu, channels)


def _decode(files: Node, gpu: bool, channels: int) -> Node:
    # Chroma as libjpeg's default has it: the decoders of the CPU know no other.
    options: dict[str, Any] = {"jpeg_fancy_upsampling": True} if gpu else {}
    device = "mixed" if gpu else "cpu"
    colors = types.GRAY if channels == 1 else types.RGB
    return fn.decoders.image(files, device=device, output_type=colors, **options)


def _inputs(view: int, recipe: AugmentationRecipe, photometric: str) -> dict[str, Node]:
    inputs = {}
    for name in input_names(recipe, photometric):
        dtype, ndim = _KINDS[name]
        inputs[name] = fn.external_source(name=input_name(view, name), dtype=dtype, ndim=ndim)
    return inputs


def _view(
    image: Node, p: dict[str, Node], recipe: AugmentationRecipe, photometric: str, gpu: bool
) -> Node:
    # Slice, then resize: a resize of a region of interest would look over its border.
    view = fn.slice(image, p["anchor"], p["shape"], axis_names="HW")
    view = fn.resize(view, size=[recipe.size, recipe.size], interp_type=types.INTERP_LINEAR)
    if "colored" in p:
        view = _fused_color(view, p)
    if "jitter" in p:
        view = _jitter(view, p, gpu) if recipe.channels == 3 else _jitter_bands(view, p)
    if "grayscale" in p:
        view = _to_gray(view, p["grayscale"])
    if "blur" in p:
        view = _blur(view, p["blur"], p["sigma"])
    if "solarize" in p:
        view = _solarize(view, p["solarize"], recipe.solarize_threshold)
    # The flip comes last, where it is free: nothing above knows left from right.
    return fn.crop_mirror_normalize(
        view,
        dtype=types.FLOAT,
        output_layout="CHW",
        mirror=p.get("mirror", 0),
        mean=[255 * value for value in recipe.mean],
        std=[255 * value for value in recipe.std],
    )


def _fused_color(view: Node, p: dict[str, Node]) -> Node:
    """Jitter and gray in one operator: contrast about 128, hue turned in YIQ."""
    if p["colored"]:
        view = fn.color_twist(
            view,
            brightness=p["brightness"],
            contrast=p["contrast"],
            saturation=p["saturation"],
            hue=p["hue"],
        )
    return view


def _jitter(view: Node, p: dict[str, Node], gpu: bool) -> Node:
    """Brightness, contrast, saturation and hue by torchvision's formulas, truncated after each."""
    if p["jitter"]:
        view = fn.brightness_contrast(view, brightness=p["brightness"], brightness_shift=_DOWN)
        view = _contrast(view, p["contrast"], gpu)
        view = _saturate(view, p["saturation"])
        view = fn.cast(_shift_hue(view, p["hue"]), dtype=types.UINT8)
    return view


def _jitter_bands(view: Node, p: dict[str, Node]) -> Node:
    """Brightness, and contrast of each channel about its own mean, of images that are not RGB."""
    if p["jitter"]:
        view = fn.brightness_contrast(view, brightness=p["brightness"], brightness_shift=_DOWN)
        mean = fn.reductions.mean(view, axes=[0, 1], keep_dims=True)
        view = math.clamp(view * p["contrast"] + (1.0 - p["contrast"]) * mean, 0.0, 255.0)
        view = fn.cast(math.floor(view), dtype=types.UINT8)
    return view


def _contrast(view: Node, contrast: Node, gpu: bool) -> Node:
    """Contrast about the mean gray."""
    mean = fn.reductions.mean(_gray(view))
    if gpu:  # where what an operator is told must not depend on pixels
        view = math.clamp(view * contrast + (1.0 - contrast) * mean, 0.0, 255.0)
        return fn.cast(math.floor(view), dtype=types.UINT8)
    return fn.brightness_contrast(
        view, contrast=contrast, contrast_center=mean, brightness_shift=_DOWN
    )


def _saturate(view: Node, saturation: Node) -> Node:
    """Levels mixed with their gray, float32."""
    view = view * saturation + _gray(view) * (1.0 - saturation)
    return math.floor(math.max(math.min(view, 255.0), 0.0))


def _gray(view: Node) -> Node:
    """Luma (ITU-R 601-2) truncated to levels, ``[S, S, 1]`` uint8."""
    return fn.coord_transform(view, M=[0.2989, 0.587, 0.114], T=[255 * _DOWN], dtype=types.UINT8)


def _to_gray(view: Node, applied: Node) -> Node:
    if applied:
        gray = _gray(view)
        view = fn.cat(gray, gray, gray, axis=2)
    return view


def _shift_hue(view: Node, shift: Node) -> Node:
    """Turns the hue of HSV by sixths of a turn; value and chroma are kept.

    Args:
        view: Levels ``[S, S, 3]`` float32.
        shift: In ``[-3, 3]``.
    """
    red, green, blue = (fn.slice(view, start=[c], shape=[1], axes=[2]) for c in range(3))
    high, least = math.max(green, blue), math.min(green, blue)
    top, middle = math.max(red, high), math.min(red, high)
    low = math.min(middle, least)
    chroma = top - low
    # The hue in sixths of a turn counts up or down from the edge of the sector that it lies in.
    sector = (green < blue) + (red < high) * 2
    edge = fn.lookup_table(sector, keys=[0, 1, 2, 3], values=[0.0, -6.0, -2.0, 4.0])
    hue = math.abs(edge + (middle - least) / math.max(chroma, 1.0)) + shift
    # How far it is round the circle from red, green and blue.
    away = math.abs(hue - np.array([[[0.0, 2.0, 4.0]]], np.float32))  # below 9
    away = math.abs(math.abs(away - 3.0) - 3.0)
    view = low + chroma * math.max(math.min(2.0 - away, 1.0), 0.0)
    # torchvision goes to [0, 1] and back with a factor just below 256.
    return math.floor(view * ((256 - 1e-3) / 255))


def _blur(view: Node, applied: Node, sigma: Node) -> Node:
    """Gaussian with window ``2 ceil(3 sigma) + 1``, reflected without repeating the border."""
    if applied:
        view = fn.gaussian_blur(view, sigma=sigma)
    return view


def _solarize(view: Node, applied: Node, threshold: int) -> Node:
    levels = np.arange(256)
    table = np.where(levels >= threshold, 255 - levels, levels).tolist()
    if applied:
        view = fn.lookup_table(
            view, keys=levels.tolist(), values=[float(v) for v in table], dtype=types.UINT8
        )
    return view
