"""Turns the few marks of reStructuredText in docstrings into Markdown."""

import re
from typing import Any

from griffe import Extension, Object

MARKS = (
    (r":math:`(.+?)`", r"`\1`"),
    (r":(?:func|class|meth|mod):`~?([\w.]+)`", r"`\1`"),
    (r"(?m)^[ \t]*::$", ""),  # a literal block without words before it
    (r"(?m)::$", ":"),
)


def to_markdown(text: str) -> str:
    """The same docstring with Markdown's marks."""
    for pattern, replacement in MARKS:
        text = re.sub(pattern, replacement, text)
    return text


class Docstrings(Extension):
    """Goes over every docstring once."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe when an object and its members are loaded."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
