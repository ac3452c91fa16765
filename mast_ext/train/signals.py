"""Signal handlers that do not outlive what set them."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def handlers_restored(numbers: Iterable[int]) -> Iterator[None]:
    """Restores the handlers of these signals at its end."""
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        with suppress(ValueError):  # handlers can be set in the main thread only
            for number, handler in before.items():
                if handler is not None:  # one that was not set by Python cannot be set by it
                    signal.signal(number, handler)
