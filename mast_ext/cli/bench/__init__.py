"""``mast-ext bench``: how fast views are made, where a training step's time goes, operators."""

import importlib
from collections.abc import Sequence

from mast_ext.cli.errors import UsageError
from mast_ext.train.suggestions import did_you_mean, similar

SUBJECTS = ("data", "step", "ops")
USAGE = """\
usage: mast-ext bench data [DIR] [options]
       mast-ext bench step [options of pretrain]
       mast-ext bench ops [OPERATOR ...] [options]

  data  how fast views are made of images of yours, beside torchvision and lightly
  step  where the time of a training step goes: options as for mast-ext pretrain
  ops   operators and losses beside lightly and plain PyTorch, and what the machine could do

`mast-ext bench data --help`, and so on, lists the options.
"""


def main(arguments: Sequence[str]) -> int:
    """Measures what is asked for, and prints a table. Returns the exit status."""
    if not arguments:
        raise UsageError("bench takes what to measure: mast-ext bench data, step or ops")
    subject, *rest = arguments
    if subject in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if subject not in SUBJECTS:
        hint = did_you_mean(similar(subject, SUBJECTS))
        raise UsageError(
            f"bench takes what to measure: mast-ext bench data, step or ops, got {subject!r}{hint}"
        )
    return importlib.import_module(f"mast_ext.cli.bench.{subject}").main(rest)
