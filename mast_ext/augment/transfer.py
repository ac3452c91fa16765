"""Batches on their way to a GPU: each is copied while the step before it runs.

Copies run on a stream of their own, from page-locked memory; from other memory the host would have
to wait for them. The host waits for no copy: the stream that trains waits for that of its batch.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch


class Batch(Protocol):
    """What is copied (`mast_ext.augment.ViewBatch`)."""

    def pin_memory(self) -> Any: ...

    def to(self, device: torch.device, non_blocking: bool) -> Any: ...

    def record_stream(self, stream: Any) -> None: ...


AnyBatch = TypeVar("AnyBatch", bound=Batch)


class CopyStream:
    """Copies batches to one GPU.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, batch: AnyBatch) -> Callable[[], AnyBatch]:
        """Starts a copy, and returns a function that has the current stream wait and gives it."""
        pinned = batch.pin_memory()
        with torch.cuda.stream(self._stream):
            copy = pinned.to(self.device, non_blocking=True)
        copied = self._stream.record_event()

        def arrived() -> AnyBatch:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            # The copy's memory is this stream's: it is not to be reused before the step is done.
            copy.record_stream(current)
            return copy

        return arrived


def copied_ahead(batches: Iterator[AnyBatch], stream: CopyStream) -> Iterator[AnyBatch]:
    """Batches on the stream's GPU, in order; before one is handed out the next one's copy starts.

    An error of ``batches`` is raised after the batches before it have been handed out.
    """
    under_way: Callable[[], AnyBatch] | None = None
    failure: Exception | None = None
    while True:
        try:
            following = stream.start(next(batches))
        except StopIteration:
            break
        except Exception as error:
            failure = error
            break
        if under_way is not None:
            yield under_way()
        under_way = following
    if under_way is not None:
        yield under_way()
    if failure is not None:
        raise failure
