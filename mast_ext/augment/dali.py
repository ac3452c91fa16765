"""Renders views by NVIDIA DALI, on the CPU or the GPU: an image is decoded once for all its views.

DALI draws nothing and keeps no state that matters: rows come from the policy as for any renderer,
and go in with the pixels, so that they cannot drift apart. What DALI does alone is ahead-of-time
work: while the caller has one batch, the next is rendered and the files of the one after are read.

``photometric="exact"`` gives torchvision's pixels: inside of a view to a fraction of a level. At
its rim DALI repeats the crop's border where it is scaled down, and torchvision does not, which is a
few levels in the outermost pixels, up to about 13; the mean difference of a whole view is about a
fifth of a level, and 0.7 of 16 pixels of a crop of 256. ``"fused"`` changes colors by one operator,
which is faster, but another recipe: contrast is changed about level 128 instead of the mean gray,
and the hue is turned in YIQ instead of HSV, so the same parameters give other colors of the same
strength.

Files are decoded by DALI where it makes of them what Pillow does and nothing about them is odd
(see `containers`), since an odd one can end the process; others go in as pixels. DALI's messages do
not say which file is at fault, so a batch that fails, or has images of other sizes than the source
says, is checked image by image: what Pillow can decode goes in as pixels, too, and anything else is
an error that names the file.
"""

import contextlib
import importlib.util
import io
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mast_ext.augment.containers import well_formed
from mast_ext.augment.parameters import COLUMN, GROUPS
from mast_ext.augment.policies import ViewPlan, ViewPolicy
from mast_ext.augment.recipe import AugmentationRecipe
from mast_ext.augment.rendering import (
    ImageSource,
    Indices,
    Plan,
    Rendered,
    by_size,
    check_crops,
    empty,
    image_of,
    within,
)
from mast_ext.checks import OptionError

PHOTOMETRIC = ("exact", "fused")
"""Ways of changing colors."""

_GATES = ("flip", "jitter", "grayscale", "blur", "solarize")  # columns, and settings of a recipe

_READ_AHEAD = 2  # batches whose files are read before they are rendered


@runtime_checkable
class EncodedImages(Protocol):
    """A source whose images are files that DALI decodes."""

    def encoded(self, index: int) -> np.ndarray: ...

    def sample_name(self, index: int) -> str: ...


def is_installed() -> bool:
    """Whether DALI is installed."""
    return importlib.util.find_spec("nvidia") is not None and (
        importlib.util.find_spec("nvidia.dali") is not None
    )


class DaliRenderer:
    """Renders the views of batches of images of one source.

    The pipeline is built when the first batch is asked for, in the process that asks.

    Args:
        source: Where the images come from.
        policy: Which views are made of them.
        batch_size: Most images in a batch.
        threads: DALI's own threads, at least 1; torch's are not used.
        prefetch: Whether to render a batch ahead of the one the caller has.
        photometric: ``"exact"`` or ``"fused"``.
        device: ``"cpu"``, or ``"gpu"`` for this process's current CUDA device: files are decoded
            (by nvJPEG) and views rendered there, and handed to torch on its current stream.

    Raises:
        ModuleNotFoundError: DALI is not installed.
        ValueError: A value is none of those that exist, there is no GPU, images have 16 bits, or
            they are not RGB and ``photometric`` is ``"fused"``.
    """

    def __init__(
        self,
        source: ImageSource,
        policy: ViewPolicy,
        *,
        batch_size: int,
        threads: int = 1,
        prefetch: bool = True,
        photometric: str = "exact",
        device: str = "cpu",
    ) -> None:
        if not is_installed():
            raise ModuleNotFoundError(
                "the DALI backend needs nvidia-dali, not installed here:"
                " pip install 'mast-ext[dali-cu13]' (or dali-cu12, as torch's CUDA is)"
            )
        if photometric not in PHOTOMETRIC:
            raise OptionError(
                f"photometric must be one of {', '.join(PHOTOMETRIC)}, got {photometric!r}"
            )
        if device not in ("cpu", "gpu"):
            raise OptionError(f"device must be cpu or gpu, got {device!r}")
        if device == "gpu" and not torch.cuda.is_available():
            raise OptionError(
                "DALI on the GPU needs a GPU that torch can use; device cpu needs none"
            )
        channels = policy.recipe.channels
        if photometric == "fused" and channels != 3:
            raise OptionError(
                f"photometric fused turns colors, and the images have {channels}"
                f" channel{'s' * (channels > 1)}: use exact"
            )
        if getattr(source, "bits", 8) != 8:  # an attribute of `mast_ext.data.Source`
            raise OptionError(
                "backend dali renders 8 bits, and the images have 16: use backend torchvision, or"
                " open them with bits 8 (in the program: --data.bits 8)"
            )
        self.source, self.policy = source, policy
        off: dict[str, Any] = dict.fromkeys(_GATES, 0.0)
        plain = replace(policy.recipe, **off)
        self._recipes = (*policy.recipes, *([plain] * policy.with_center))
        self._files: EncodedImages | None = None  # the source, if its images are decoded by DALI
        if isinstance(source, EncodedImages) and source.stacked is None and channels in (1, 3):
            self._files = source
        self._prefetch = prefetch
        self._photometric, self._gpu = photometric, device == "gpu"
        self._batch_size, self._threads = batch_size, threads
        # The pipeline lies in one of these, and in neither while it is worked on: one that an error
        # or an interrupt has left half-way is not used again.
        self._idle: Any = None
        self._running: tuple[Any, _Batch] | None = None  # the pipeline, and the batch in it
        self._copied: list[tuple[torch.cuda.Event, list[Tensor]]] = []
        self._decoder: Any = None
        self._as_pixels: set[int] = set()  # images that only Pillow is to decode

    def render(
        self, parts: Iterable[Indices], plan: Plan, *, for_gpu: bool = False
    ) -> Iterator[Rendered]:
        """See `Renderer`; with prefetching, ``plan`` is called in another thread.

        Raises:
            ValueError: An image cannot be decoded; the message names it.
            RuntimeError: DALI fails for another reason.
        """
        if not self._prefetch:
            for indices in parts:
                alone = self._prepare(indices, plan(indices))
                self._start(alone)
                yield self._finish(alone, for_gpu)
            return
        running: _Batch | None = None
        for ready in _ahead(lambda indices: self._prepare(indices, plan(indices)), parts):
            batch, failure = None, None
            try:
                batch = ready()
            except Exception as error:  # raised once the batch before it is through
                failure = error
            done, running = running, batch
            rendered = None if done is None else self._finish(done, for_gpu)
            if batch is not None:
                self._start(batch)
            if rendered is not None:
                yield rendered
            if failure is not None:
                raise failure
        if running is not None:
            yield self._finish(running, for_gpu)

    def _prepare(self, indices: Indices, plan: ViewPlan) -> "_Batch":
        if self.source.stacked is not None:
            stack = self.source.stacked.numpy()[indices]  # see `_stack`
            images: Any = np.ascontiguousarray(stack.transpose(0, 2, 3, 1))
            self._require_levels(images[0])
        elif self._files is not None:
            images = [self._file(self._files, int(index)) for index in indices]
        else:
            images = [self._pixels(int(index)) for index in indices]
        sizes = self.source.sizes[indices]
        arguments = _arguments(plan.rows, sizes, self._recipes, self._photometric)
        return _Batch(indices, plan, images, arguments)

    def _file(self, files: EncodedImages, index: int) -> NDArray[np.uint8]:
        if index not in self._as_pixels:
            height, width = self.source.sizes[index].tolist()
            data = well_formed(files.encoded(index), (height, width))
            if data is not None:
                return data
            self._as_pixels.add(index)
        return _bitmap(self._pixels(index))

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        """Image ``index``, ``[H, W, C]``."""
        pixels = np.ascontiguousarray(image_of(self.source, index).permute(1, 2, 0).numpy())
        self._require_levels(pixels)
        return pixels

    def _require_levels(self, pixels: NDArray[Any]) -> None:
        channels = self.policy.recipe.channels
        if pixels.dtype != np.uint8 or pixels.shape[-1] != channels:
            raise ValueError(
                f"backend dali needs uint8 images of as many channels as mean and std have numbers,"
                f" {channels}, got {pixels.dtype} of {pixels.shape[-1]}"
            )

    def _start(self, batch: "_Batch") -> None:
        if self._running is not None:  # of an epoch that was left early
            with contextlib.suppress(RuntimeError):  # it may have been a bad one
                self._outputs()
        pipeline, self._idle = self._idle or self._build(), None
        pipeline.feed_input("image", batch.images)
        for name, values in batch.arguments.items():
            pipeline.feed_input(name, values)
        pipeline.schedule_run()
        self._running = pipeline, batch

    def _finish(self, batch: "_Batch", for_gpu: bool) -> Rendered:
        try:
            views = self._views(batch)
        except RuntimeError as error:
            self._replace_undecodable(batch, error)
            views = self._views(batch)
        full, local = by_size(self.policy, views)
        small = _stack(local, for_gpu) if local else None
        rendered = Rendered(batch.indices, batch.plan, _stack(full, for_gpu), small)
        if self._gpu:
            self._keep_until_copied(views)
        return rendered

    def _views(self, batch: "_Batch") -> list[Tensor]:
        """The views of a batch, each ``[B, C, S, S]``; without a copy."""
        if self._running is None or self._running[1] is not batch:  # another epoch came between
            self._start(batch)
        outputs = self._outputs()
        if self._files is not None:  # crops were drawn for the sizes that headers say
            *outputs, shapes = outputs
            sizes = self.source.sizes[batch.indices]
            if not np.array_equal(np.array(shapes.as_tensor())[:, :2], sizes):
                raise RuntimeError("images have other sizes than their headers say")
        return [torch.from_dlpack(views.as_tensor()) for views in outputs]

    def _outputs(self) -> Any:
        """Takes what the pipeline is working on."""
        assert self._running is not None
        (pipeline, _), self._running = self._running, None
        outputs = pipeline.outputs(cuda_stream=torch.cuda.current_stream() if self._gpu else None)
        self._idle = pipeline
        return outputs

    def _keep_until_copied(self, views: list[Tensor]) -> None:
        """Keeps DALI from writing to views that torch's stream has yet to copy.

        Nothing promises that memory given back waits for what was queued on a stream of torch's.
        """
        event = torch.cuda.Event()
        event.record()
        self._copied = [kept for kept in self._copied if not kept[0].query()]
        self._copied.append((event, views))

    def _build(self) -> Any:
        from mast_ext.augment.dali_graph import build_graph

        return build_graph(
            self._recipes,
            encoded=self._files is not None,
            photometric=self._photometric,
            gpu=self._gpu,
            **self._options(self._batch_size),
        )

    def _options(self, batch_size: int) -> dict[str, Any]:
        return {
            "batch_size": batch_size,
            "num_threads": self._threads,
            "device_id": torch.cuda.current_device() if self._gpu else None,
            # One batch under way: its inputs and outputs need no matching up.
            "prefetch_queue_depth": 1,
        }

    def _replace_undecodable(self, batch: "_Batch", error: RuntimeError) -> None:
        """Replaces images of a failed batch that only Pillow can decode by their pixels.

        Raises:
            ValueError: Pillow cannot decode one, either, or it has changed its size.
            RuntimeError: DALI can decode all of them, so the failure is another.
        """
        reason = str(error).strip()
        found = []
        for position, index in enumerate(batch.indices.tolist()):
            if self._files is not None and not self._decodes(batch.images[position], index):
                batch.images[position] = _bitmap(self._pixels(index))
                found.append(index)
        if not found:
            some = ", ".join(map(str, batch.indices[:8].tolist()))
            raise RuntimeError(f"DALI cannot render the batch of samples {some}, …: {reason}")
        self._as_pixels.update(found)

    def _decodes(self, data: NDArray[np.uint8], index: int) -> bool:
        """Whether DALI decodes a file, and to the size that its header says."""
        from mast_ext.augment.dali_graph import build_decoder

        if self._decoder is None:
            channels = self.policy.recipe.channels
            self._decoder = build_decoder(gpu=self._gpu, channels=channels, **self._options(1))
        try:
            self._decoder.feed_input("image", [data])
            self._decoder.schedule_run()
            height, width, _ = self._decoder.outputs()[0].as_tensor().shape()[1:]
        except RuntimeError:
            self._decoder = None
            return False
        return (height, width) == tuple(self.source.sizes[index].tolist())


@dataclass
class _Batch:
    """A batch as the pipeline takes it: images (files or pixels), and arguments by input."""

    indices: Indices
    plan: ViewPlan
    images: Any
    arguments: dict[str, NDArray[Any]]


def _stack(views: Sequence[Tensor], for_gpu: bool) -> Tensor:
    if views[0].is_cuda:
        return torch.stack(list(views))
    out = empty((len(views), *views[0].shape), views[0].dtype, for_gpu=for_gpu)
    # On the CPU, torch would start threads for it, which get in the way of DALI's.
    np.stack([view.numpy() for view in views], out=out.numpy())
    return out


def _arguments(
    rows: Tensor, sizes: np.ndarray, recipes: Sequence[AugmentationRecipe], photometric: str
) -> dict[str, NDArray[Any]]:
    """Arguments of every operator of every view, each ``[B]`` or ``[B, 2]``."""
    from mast_ext.augment.dali_graph import input_name, input_names

    check_crops(rows)
    scale = sizes[:, [0, 1, 0, 1]].astype(np.float64)
    arguments: dict[str, NDArray[Any]] = {}
    for view, (chosen, recipe) in enumerate(zip(rows.numpy(), recipes, strict=True)):
        values: dict[str, NDArray[Any]] = {name: chosen[:, at] for name, at in COLUMN.items()}
        for name in _GATES:
            values[name] = values[name] > 0.5
            augmentation = "color" if name == "jitter" else name
            if augmentation not in recipe.augmentations and values[name].any():
                raise ValueError(f"view {view} has {name}, which its recipe switches off")
        box = chosen[:, GROUPS["crop"]] * scale
        anchor, shape = within(box[:, :2], box[:, 2:], sizes)
        values["anchor"], values["shape"] = anchor.astype(np.int32), shape.astype(np.int32)
        values["mirror"] = values["flip"].astype(np.int32)
        if photometric == "fused":
            values["colored"] = values["jitter"] | values["grayscale"]
            values["saturation"] = values["saturation"] * ~values["grayscale"]
        values["hue"] = values["hue"] * (360 if photometric == "fused" else 6)
        for name in input_names(recipe, photometric):
            arguments[input_name(view, name)] = np.ascontiguousarray(values[name])
    return arguments


def _bitmap(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels as a file that loses nothing and takes no time to decode."""
    buffer = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(buffer, "bmp")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def _ahead(
    prepare: Callable[[Indices], _Batch], parts: Iterable[Indices]
) -> Iterator[Callable[[], _Batch]]:
    """Prepares batches in another thread; calling what it yields waits for one and returns it."""
    pending: deque[Future[_Batch]] = deque()
    pool = ThreadPoolExecutor(1, "files")
    ending = sys.is_finalizing  # when modules may have gone
    try:
        for indices in parts:
            pending.append(pool.submit(prepare, indices))
            if len(pending) > _READ_AHEAD:
                yield pending.popleft().result
        while pending:
            yield pending.popleft().result
    finally:
        if not ending():
            pool.shutdown(wait=False, cancel_futures=True)
