"""Turns settings dataclasses into options and YAML, by jsonargparse."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from rich.console import Console

from mast_ext.cli.errors import UsageError
from mast_ext.train.errors import RunError
from mast_ext.train.state.run_directory import read_settings

HARD_VIEWS = "--hard_views"

RETIRED = {
    "train.tensorboard": "train.logger with tensorboard for true, csv for false",
}
"""What to write for settings that there were once."""


class Parser(ArgumentParser):
    """A parser that answers a wrong command line with one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        explained = self._explain(" ".join(message.split()))
        raise UsageError(f"{explained} (options: {self.prog} --help)") from ex

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """The settings in a file; an error names it."""
        try:
            self.check_names(read_settings(Path(path)))
            return super().parse_path(path, *args, **kwargs)
        except RunError as error:
            raise UsageError(str(error)) from error
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error

    def check_names(self, values: Mapping[str, Any], group: str = "") -> None:
        """Reports the first name in a file of settings that is none of a setting.

        jsonargparse would do so when it no longer knows which file it was in.
        """
        known = {a.dest for a in self._actions if not a.dest.endswith(".help")}
        groups = {dest[:at] for dest in known for at, c in enumerate(dest) if c == "."}
        for key, value in values.items():
            name = f"{group}{key}"
            if name in groups and isinstance(value, Mapping):
                self.check_names(value, f"{name}.")
            elif name in groups:
                self.error(f"{name} must be a mapping of settings, got {value!r}")
            elif name not in known:
                close = difflib.get_close_matches(name, known - groups, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                if name in RETIRED:
                    hint = f" any more: write {RETIRED[name]}"
                self.error(f"there is no setting {name}{hint}")

    def _explain(self, message: str) -> str:
        unknown = re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE)
        if not unknown:
            message = re.sub(r'^Parser key "([^"]+)": ', r"--\1: ", message)
            message = re.sub(r"Expected a <class '(\w+)'>", r"expected \1", message)
            return re.sub(r"Expected a typing\.Literal\[([^]]+)\]", r"expected one of \1", message)
        option = unknown[1].split("=")[0]
        if (name := option.removeprefix("--")) in RETIRED:
            return f"there is no option {option} any more: write --{RETIRED[name]}"
        known = [o for action in self._actions for o in action.option_strings]
        close = difflib.get_close_matches(option, known, n=1)
        return f"there is no option {option}" + (f"; did you mean {close[0]}?" if close else "")


def settings_parser(command: str, description: str, settings: type) -> Parser:
    """A parser with an option for every field of a settings dataclass, nested ones dotted."""
    parser = Parser(prog=f"mast-ext {command}", description=description, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with settings.")
    parser.add_class_arguments(settings, nested_key=None)
    return parser


def canonical(arguments: Sequence[str]) -> list[str]:
    """A command line with the full names of its options.

    Names may be written with dashes for underscores, and ``--hard-views 4`` is short for
    ``--hard_views.views 4``.
    """
    words: list[str] = []
    for word in arguments:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            if name == HARD_VIEWS and value.isdecimal():
                name += ".views"
        elif words and words[-1] == HARD_VIEWS and word.isdecimal():
            words[-1] += ".views"
        words.append(name + equals + value)
    return words


def parse_for_defaults(parser: Parser, arguments: Sequence[str]) -> Namespace:
    """Values of a command line, read to find the defaults that depend on some of them."""
    return parser.parse_args([a for a in arguments if not _prints(a)])


def parse(parser: Parser, arguments: Sequence[str]) -> Namespace:
    """Values of a command line.

    ``--print_config`` is moved to the end: jsonargparse prints what it has read before it.
    """
    return parser.parse_args(sorted(arguments, key=_prints))


def _prints(argument: str) -> bool:
    return argument.split("=")[0] == "--print_config"


def build(parser: Parser, values: Namespace, settings: type, *others: str) -> Any:
    """The settings dataclass from parsed values; ``others`` are options that are no settings."""
    made = parser.instantiate(values)
    fields = {name: value for name, value in vars(made).items() if name not in ("config", *others)}
    return settings(**fields)


def options_in(arguments: Sequence[str], *, but: Sequence[str]) -> list[str]:
    """Names of the options on a command line, except those in ``but``."""
    options = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
    return [option for option in options if option not in but]


def output_console() -> Console:
    """Standard output for tables; wide enough for them when it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 120))
