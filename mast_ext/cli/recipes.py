"""``mast-ext recipes``: which settings of papers there are, and what they say."""

from collections.abc import Sequence

from mast_ext.cli.errors import UsageError
from mast_ext.cli.help import value_of
from mast_ext.train.recipes import RECIPES, methods_of, recipe_file

USAGE = """\
usage: mast-ext recipes [NAME [--method METHOD]]

Lists the recipes, or prints one: settings with their sources, as --config takes them.

  mast-ext recipes
  mast-ext recipes cifar10-resnet18 --method byol > mine.yaml
  mast-ext pretrain --recipe cifar10-resnet18 --method byol --data.path DIR
"""


def main(arguments: Sequence[str]) -> int:
    """Lists recipes or prints one. Returns the exit status."""
    if {"-h", "--help"}.intersection(arguments):
        print(USAGE, end="")
        return 0
    if not arguments:
        for name, what in RECIPES.items():
            print(f"{name}: {what}\n    {', '.join(methods_of(name))}")
        print("\nmast-ext recipes NAME [--method METHOD] prints one")
        return 0
    name, *options = arguments
    method = value_of("--method", options)
    known = [] if method is None else ([f"--method={method}"], ["--method", method])
    if options and options not in known:
        raise UsageError(f"recipes takes a name and --method, got {' '.join(arguments)}")
    files = [recipe_file(name, each) for each in methods_of(name) if method in (None, each)]
    if not files:
        recipe_file(name, str(method))  # which says what there is
    print("\n---\n".join(file.read_text(encoding="utf-8").rstrip() for file in files))
    return 0
