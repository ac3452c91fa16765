"""``mast-ext recipes``: which settings of papers there are, and what they say."""

from collections.abc import Sequence

from mast_ext.cli.errors import UsageError
from mast_ext.cli.parser import Parser
from mast_ext.train.recipes import RECIPES, methods_of, recipe_file
from mast_ext.train.suggestions import did_you_mean, similar


def main(arguments: Sequence[str]) -> int:
    """Lists recipes or prints one. Returns the exit status."""
    values = make_parser().parse_args(list(arguments))
    name, method = values.name, values.method
    if name is None and method is None:
        for name, what in RECIPES.items():
            print(f"{name}: {what}\n    {', '.join(methods_of(name))}")
        print(
            "\nmast-ext recipes NAME prints the settings for all methods;"
            "\nmast-ext recipes NAME --method METHOD, those for one, as --config takes them"
        )
        return 0
    if name is None:
        found = [name for name in RECIPES if method in methods_of(name)]
        if not found:
            known = sorted({each for name in RECIPES for each in methods_of(name)})
            hint = did_you_mean(similar(method, known)) or f": those of {', '.join(known)}"
            raise UsageError(f"no recipe has settings of {method}{hint}")
        for name in found:
            print(f"{name}: {RECIPES[name]}")
        return 0
    try:
        methods = methods_of(name) if method is None else [method]
        files = [recipe_file(name, each) for each in methods]
    except ValueError as error:
        raise UsageError(str(error)) from error
    print("\n---\n".join(file.read_text(encoding="utf-8").rstrip() for file in files))
    return 0


def make_parser() -> Parser:
    """All options of the command."""
    parser = Parser(
        prog="mast-ext recipes",
        description="Lists the recipes, or prints one: settings with their sources.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", help="A recipe.")
    parser.add_argument("--method", help="The settings of this method alone.")
    return parser
