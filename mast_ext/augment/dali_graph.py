"""The DALI graph that renders parameter rows: one decoded image, one chain of operators per view.

The graph draws nothing: every argument of every operator is an input, so it is the same for all
policies. An operation stands under an ``if`` on its gate, and costs only the views that have it.

Functions here are compiled by DALI from their source text (`if` on a node splits the batch), so
they must be plain functions in a file.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, math, pipeline_def, types

from mast_ext.augment.recipe import AugmentationRecipe

Node = Any  # nvidia.dali.data_node.DataNode, or a number

GATES = ("flip", "jitter", "grayscale", "blur", "solarize")
"""Inputs of a view that are bool scalars; they are the columns of these names."""

FACTORS = ("brightness", "contrast", "saturation", "hue", "sigma")
"""Inputs of a view that are float scalars; they are the columns of these names."""

BOX = ("anchor", "shape")
"""Inputs of a view that are pairs (y, x) and (height, width) of pixels."""


def input_name(view: int, name: str) -> str:
    """Name of an input of a view."""
    return f"view{view}_{name}"


@pipeline_def(enable_conditionals=True)
def build_graph(
    recipes: Sequence[AugmentationRecipe], *, encoded: bool, photometric: str, gpu: bool
) -> tuple[Node, ...]:
    """Views of a batch of images.

    The input ``image`` is ``[n]`` uint8 (an encoded file) or ``[H, W, 3]`` uint8.

    Args:
        recipes: Size, normalisation and solarisation threshold of every view.
        encoded: Whether images come as files.
        photometric: ``exact`` or ``fused``, see `mast_ext.augment.dali`.
        gpu: Whether to decode (files: by ``mixed``) and render on the GPU.

    Returns:
        For every view a batch of ``[3, S, S]`` float32.
    """
    image = fn.external_source(
        name="image", dtype=types.UINT8, ndim=1 if encoded else 3, layout="" if encoded else "HWC"
    )
    if encoded:
        image = _decode(image, gpu)
    elif gpu:
        image = image.gpu()
    return tuple(
        _view(image, _inputs(view), recipe, photometric) for view, recipe in enumerate(recipes)
    )


@pipeline_def
def build_decoder(*, gpu: bool) -> Node:
    """Pixels ``[H, W, 3]`` uint8 of the input ``image``, a batch of files."""
    return _decode(fn.external_source(name="image", dtype=types.UINT8, ndim=1), gpu)


def _decode(files: Node, gpu: bool) -> Node:
    # Chroma as libjpeg's default has it: the decoders of the CPU know no other.
    options: dict[str, Any] = {"jpeg_fancy_upsampling": True} if gpu else {}
    device = "mixed" if gpu else "cpu"
    return fn.decoders.image(files, device=device, output_type=types.RGB, **options)


def _inputs(view: int) -> dict[str, Node]:
    kinds = [(BOX, types.INT32, 1), (GATES, types.BOOL, 0), (FACTORS, types.FLOAT, 0)]
    return {
        name: fn.external_source(name=input_name(view, name), dtype=dtype, ndim=ndim)
        for names, dtype, ndim in kinds
        for name in names
    }


def _view(image: Node, p: dict[str, Node], recipe: AugmentationRecipe, photometric: str) -> Node:
    # Slice, then resize: a resize of a region of interest would look over its border.
    view = fn.slice(image, p["anchor"], p["shape"], axis_names="HW")
    view = fn.resize(view, size=[recipe.size, recipe.size], interp_type=types.INTERP_LINEAR)
    color = _fused_color if photometric == "fused" else _exact_color
    view = color(view, p)
    view = _blur(view, p["blur"], p["sigma"])
    view = _solarize(view, p["solarize"], recipe.solarize_threshold)
    return fn.crop_mirror_normalize(
        view,
        dtype=types.FLOAT,
        output_layout="CHW",
        # The flip comes last, where it is free: nothing above knows left from right.
        mirror=fn.cast(p["flip"], dtype=types.INT32),
        mean=[255 * value for value in recipe.mean],
        std=[255 * value for value in recipe.std],
    )


def _fused_color(view: Node, p: dict[str, Node]) -> Node:
    """Jitter and grey in one operator: contrast about 128, hue turned in YIQ."""
    colored = p["jitter"] | p["grayscale"]
    saturation = p["saturation"] * (1.0 - p["grayscale"])
    if colored:
        view = fn.color_twist(
            view,
            brightness=p["brightness"],
            contrast=p["contrast"],
            saturation=saturation,
            hue=p["hue"] * 360.0,
        )
    return view


def _exact_color(view: Node, p: dict[str, Node]) -> Node:
    """Jitter and grey by torchvision's formulas, truncated to levels after each."""
    shifted = p["jitter"] & (p["hue"] != 0.0)
    if p["jitter"]:
        view = _jitter(view, p["brightness"], p["contrast"], p["saturation"])
    if shifted:
        view = _shift_hue(view, p["hue"])
    if p["grayscale"]:
        grey = fn.cast(_grey(view), dtype=types.UINT8)
        view = fn.cat(grey, grey, grey, axis=2)
    return view


def _jitter(view: Node, brightness: Node, contrast: Node, saturation: Node) -> Node:
    """Brightness, contrast (about the mean grey) and saturation."""
    view = math.floor(math.min(view * brightness, 255.0))
    mean = fn.reductions.mean(_grey(view))
    view = math.floor(math.clamp(view * contrast + (1.0 - contrast) * mean, 0.0, 255.0))
    view = math.floor(math.clamp(view * saturation + (1.0 - saturation) * _grey(view), 0.0, 255.0))
    return fn.cast(view, dtype=types.UINT8)


def _grey(view: Node) -> Node:
    """Luma (ITU-R 601-2) truncated to levels, ``[S, S, 1]`` float32."""
    weighted = view * np.array([[[0.2989, 0.587, 0.114]]], np.float32)
    return math.floor(fn.reductions.sum(weighted, axes=[2], keep_dims=True))


def _shift_hue(view: Node, shift: Node) -> Node:
    """Turns the hue of HSV by a fraction of a turn; see `torchvision._shift_hue`."""
    view = fn.cast(view, dtype=types.FLOAT)
    red, green, blue = (fn.slice(view, start=[c], shape=[1], axes=[2]) for c in range(3))
    top = fn.reductions.max(view, axes=[2], keep_dims=True)
    chroma = top - fn.reductions.min(view, axes=[2], keep_dims=True)
    is_red = top == red
    is_green = (top == green) & (top != red)
    is_blue = (top != green) & (top != red)
    ahead = is_red * (green - blue) + is_green * (blue - red) + is_blue * (red - green)
    sextant = ahead / math.max(chroma, 1.0) + is_green * 2.0 + is_blue * 4.0 + 6.0 * shift
    turned = sextant + np.array([[[5.0, 3.0, 1.0]]], np.float32)
    turned = turned - 6.0 * math.floor(turned * (1.0 / 6.0))
    missing = math.clamp(math.min(turned, 4.0 - turned), 0.0, 1.0) * chroma
    # torchvision goes to [0, 1] and back with a factor just below 256.
    return fn.cast(math.floor((top - missing) * ((256 - 1e-3) / 255)), dtype=types.UINT8)


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
