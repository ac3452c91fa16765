"""A line on a terminal that says what is going on when something takes long, and then goes away."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

from rich.console import Console
from rich.text import Text

PATIENCE = 3.0
"""Seconds after which it appears."""


@contextmanager
def told_while_waiting(console: Console | None, text: str) -> Iterator[Callable[[str], None]]:
    """Shows the text while the body runs, once it has run for `PATIENCE` seconds.

    Args:
        console: Where; nothing is shown without one, or if it is no terminal.
        text: What is going on.

    Yields:
        A function that replaces the text.
    """
    if console is None or not console.is_terminal:
        yield lambda text: None
        return
    status = console.status(Text(text))
    timer = Timer(PATIENCE, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda text: status.update(Text(text))
    finally:
        timer.cancel()
        timer.join()  # it may be about to start
        status.stop()
