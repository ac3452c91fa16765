"""The operators that render views: what they are defined as, memory they may use, misuse.

That their pixels are torchvision's is for test_torchvision.py. Nothing here needs torchvision: the
sanitizers' tests run this file, too.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mast_ext import ops
from mast_ext.augment.parameters import COLUMN, NEUTRAL

DTYPES = [torch.uint8, torch.uint16]


def levels(*shape, dtype=torch.uint8, seed=0):
    drawn = np.random.default_rng(seed).integers(0, torch.iinfo(dtype).max + 1, shape)
    return torch.from_numpy(drawn.astype(str(dtype).removeprefix("torch.")))


def rows_of(count, **changes):
    rows = torch.tensor(NEUTRAL).repeat(count, 1)
    for name, value in changes.items():
        rows[:, COLUMN[name]] = torch.as_tensor(value)
    return rows


EVERYTHING = {
    **{"jitter": 1, "brightness": 1.3, "contrast": 0.7, "saturation": 1.4, "hue": -0.2},
    **{"blur": 1, "sigma": 1.1, "solarize": 1},
}


def changed(given, rows, *, threshold=128, normalized=True, out=None):
    channels = given.shape[1]
    mean, std = (torch.full((channels,), v) for v in (0.4, 0.3)) if normalized else (None, None)
    if out is None:
        out = torch.empty(given.shape, dtype=torch.float32 if normalized else given.dtype)
    ops.rendering.photometry(given, rows, threshold, mean, std, out)
    return out


def cropped(images, boxes, flipped, size):
    return ops.rendering.resized_crops(images, torch.tensor(boxes), torch.tensor(flipped), size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (33, 40), (70, 35)], ids=str)
def test_any_strides_and_any_part_of_a_batch(size, channels, dtype):
    """The same levels, wherever they lie and whatever lies beside them."""
    given = levels(5, channels, *size, dtype=dtype)
    color = {} if channels == 3 else {"saturation": 1, "hue": 0}
    rows = rows_of(5, **{**EVERYTHING, **color, "sigma": torch.linspace(0.1, 9, 5)})
    found = changed(given, rows)
    assert found.isfinite().all()
    interleaved = torch.empty(5, *size, channels, dtype=dtype).movedim(-1, 1).copy_(given)
    assert torch.equal(changed(interleaved, rows), found)
    for i in range(5):
        assert torch.equal(changed(given[i : i + 1], rows[i : i + 1]), found[i : i + 1])
    as_levels = changed(given, rows, normalized=False)
    top = torch.iinfo(dtype).max
    assert torch.equal((as_levels.float() / top - 0.4) / 0.3, found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sigma", [0.05, 0.7, 2.0, 40.0])
def test_blur_is_a_gaussian_of_a_reflected_image(sigma, dtype):
    height, width = 21, 9
    given = levels(2, 3, height, width, dtype=dtype)
    found = changed(given, rows_of(2, blur=1, sigma=sigma), normalized=False)
    radius = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    wanted = given.numpy().astype(np.float64)
    for axis in (2, 3):
        reach = [(0, 0)] * axis + [(radius, radius)] + [(0, 0)] * (3 - axis)
        padded = np.pad(wanted, reach, mode="reflect")
        wanted = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
    difference = np.abs(found.numpy() - wanted)
    assert difference.max() <= 1 and difference.mean() <= 0.3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_crop_at_its_own_size_is_a_copy(dtype):
    images = levels(3, 2, 20, 31, dtype=dtype)
    found = cropped(images, [[0, 0, 7, 7], [13, 24, 7, 7], [5, 9, 7, 7]], [False, False, True], 7)
    assert torch.equal(found[0], images[0, :, :7, :7])
    assert torch.equal(found[1], images[1, :, 13:, 24:])
    mirrored = images[2, :, 5:12, 9:16].numpy()[..., ::-1]
    assert np.array_equal(found[2].numpy(), mirrored)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_crop_of_one_color_stays_it(dtype):
    """Of any size, also where rounded weights sum to more than 1."""
    for size in (1, 3, 50, 64):
        for extent in range(1, 65, 3):
            images = torch.full((1, 1, 64, 64), torch.iinfo(dtype).max).to(dtype)
            found = cropped(images, [[64 - extent, 0, extent, 65 - extent]], [True], size)
            off = torch.iinfo(dtype).max - found.to(torch.int64)
            assert off.min() >= 0 and off.max() <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 13])
def test_crops_of_any_number_of_channels_and_strides(channels, dtype):
    """Each channel is what it is alone, wherever the levels lie."""
    images = levels(3, channels, 19, 26, dtype=dtype)
    boxes, flipped = [[0, 0, 19, 26], [3, 5, 1, 20], [2, 1, 16, 2]], [False, True, False]
    found = cropped(images, boxes, flipped, 9)
    interleaved = torch.empty(3, 19, 26, channels, dtype=dtype).movedim(-1, 1).copy_(images)
    assert torch.equal(cropped(interleaved, boxes, flipped, 9), found)
    for c in range(channels):
        assert torch.equal(cropped(images[:, c : c + 1], boxes, flipped, 9), found[:, c : c + 1])
    one = images[:1].expand(3, -1, -1, -1)
    assert torch.equal(cropped(one, boxes[:1] * 3, [False] * 3, 9)[2], found[0])


def test_tall_image():
    """Whose rows are more than a thread keeps memory for."""
    images = torch.full((1, 3, 12_000, 2), 77, dtype=torch.uint8)
    assert torch.equal(cropped(images, [[0, 0, 12_000, 2]], [False], 224).unique(), images.unique())


def test_odd_numbers_of_what_is_not_done_do_no_harm():
    given = levels(2, 3, 8, 8)
    rows = rows_of(2, brightness=torch.inf, sigma=torch.nan)
    assert torch.equal(changed(given, rows, normalized=False), given)
    huge = rows_of(2, jitter=1, brightness=3e38, contrast=-3e38, saturation=3e38, hue=3e38)
    assert changed(given, huge).isfinite().all()


REFUSED = [  # changes to arguments that are accepted, what is said of them
    (
        "photometry",
        {"given": levels(3, 4, 4)},
        ValueError,
        r"levels must have shape \[N, C, H, W\]",
    ),
    ("photometry", {"given": torch.zeros(2, 3, 4, 4)}, TypeError, "levels must be uint8 or uint16"),
    (
        "photometry",
        {"rows": rows_of(3)},
        ValueError,
        r"rows must have shape \[2, 14\], got \[3, 14",
    ),
    ("photometry", {"rows": rows_of(2).double()}, TypeError, "rows must be float32, got Double"),
    *(
        (
            "photometry",
            {"rows": rows_of(2, blur=1, sigma=torch.tensor([1, sigma]))},
            ValueError,
            said,
        )
        for sigma, said in (
            (1001, "sigma must be at most 1000 pixels, got 1001 in row 1"),
            (1e19, "sigma must be at most 1000 pixels, got 1e"),
            (np.nan, "sigma must be at most 1000 pixels, got nan in row 1"),
        )
    ),
    (
        *("photometry", {"rows": rows_of(2, jitter=1, hue=torch.tensor([np.inf, 0]))}, ValueError),
        "saturation and hue must be finite, those of row 0 are not",
    ),
    (
        *("photometry", {"out": torch.empty(49).as_strided((2, 3, 4, 4), (1, 16, 4, 1))}),
        *(ValueError, "each image of out must be contiguous and apart from the others"),
    ),
    ("photometry", {"std": None}, ValueError, "mean and std must be given together"),
    ("photometry", {"mean": torch.ones(2)}, ValueError, r"mean must have shape \[3\], got \[2\]"),
    ("photometry", {"std": torch.ones(3).half()}, TypeError, "std must be float32, got Half"),
    ("photometry", {"out": torch.empty(2, 3, 4, 5)}, ValueError, r"out must have shape \[2, 3, 4"),
    ("photometry", {"out": levels(2, 3, 4, 4)}, TypeError, "out must be Float, got Byte"),
    (
        *("photometry", {"out": torch.empty(2, 4, 4, 3).movedim(-1, 1)}, ValueError),
        "each image of out must be contiguous and apart from the others, got strides",
    ),
    (
        "photometry",
        {
            **{"given": levels(2, 2, 4, 4), "rows": rows_of(2, hue=torch.tensor([0, 0.1]))},
            **{"mean": torch.ones(2), "std": torch.ones(2), "out": torch.empty(2, 2, 4, 4)},
        },
        ValueError,
        "row 1 changes saturation, hue or grayscale, and images of 2 channels have no color",
    ),
    (
        "resized_crops",
        {"images": levels(3, 4, 4)},
        ValueError,
        r"images must have shape \[N, C, H,",
    ),
    ("resized_crops", {"images": torch.zeros(2, 3, 4, 4)}, TypeError, "images must be uint8 or"),
    (
        "resized_crops",
        {"boxes": torch.ones(2, 3).long()},
        ValueError,
        r"boxes must have shape \[2, ",
    ),
    ("resized_crops", {"boxes": torch.ones(2, 4)}, TypeError, "boxes must be Long, got Float"),
    ("resized_crops", {"flipped": torch.ones(2)}, TypeError, "flipped must be Bool, got Float"),
    ("resized_crops", {"size": 0}, ValueError, "size must be at least 1, got 0"),
    *(
        ("resized_crops", {"boxes": torch.tensor([[0, 0, 4, 4], box])}, ValueError, message)
        for box, message in (
            (
                [1, 0, 4, 4],
                r"boxes must be non-empty and inside the image, .* \(1, 0, 4, 4\) of im",
            ),
            ([0, -1, 4, 4], r"\(0, -1, 4, 4\) of image 1 of 4 x 4"),
            ([0, 0, 0, 4], r"\(0, 0, 0, 4\)"),
            ([0, 2**62, 4, 2**62], "inside the image"),
        )
    ),
]
CALLS = {
    "photometry": lambda a: ops.rendering.photometry(
        a["given"], a["rows"], 128, a["mean"], a["std"], a["out"]
    ),
    "resized_crops": lambda a: ops.rendering.resized_crops(
        a["images"], a["boxes"], a["flipped"], a["size"]
    ),
}


@pytest.mark.parametrize(("name", "changes", "error", "message"), REFUSED)
def test_misuse_is_refused(name, changes, error, message):
    accepted = {
        **{"given": levels(2, 3, 4, 4), "rows": rows_of(2), "mean": torch.ones(3)},
        **{"std": torch.ones(3), "out": torch.empty(2, 3, 4, 4)},
        **{"images": levels(2, 3, 4, 4), "boxes": torch.tensor([[0, 0, 4, 4]] * 2)},
        **{"flipped": torch.tensor([False, True]), "size": 5},
    }
    CALLS[name](accepted)
    with pytest.raises(error, match=message):
        CALLS[name]({**accepted, **changes})


PRINT_VIEWS = """
import hashlib, sys
sys.path.insert(0, {folder!r})
from test_view_operators import DTYPES, EVERYTHING, changed, cropped, levels, rows_of
for dtype in DTYPES:
    images = levels(40, 3, 37, 50, dtype=dtype)
    boxes = [[i % 7, i % 11, 1 + i % 30, 1 + i] for i in range(39)] + [[0, 0, 37, 50]]
    views = cropped(images, boxes, [i % 2 == 0 for i in range(40)], 32)
    out = changed(views, rows_of(40, **EVERYTHING))
    print(hashlib.sha256(out.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif("MAST_EXT_CPU_ISA" in os.environ, reason="MAST_EXT_CPU_ISA chooses one set")
def test_pixels_are_the_same_from_every_instruction_set():
    found = {}
    for isa in ops.build_info()["cpu_isas"].split():
        done = subprocess.run(
            [sys.executable, "-c", PRINT_VIEWS.format(folder=os.path.dirname(__file__))],
            env=os.environ | {"MAST_EXT_CPU_ISA": isa},
            capture_output=True,
            text=True,
        )
        if "MAST_EXT_CPU_ISA must be one of" in done.stderr:  # this CPU has not got it
            continue
        assert done.returncode == 0, done.stderr
        found[isa] = done.stdout
    if len(found) == 1:
        pytest.skip(f"this CPU and this build have but one: {', '.join(found)}")
    assert len(set(found.values())) == 1, found
