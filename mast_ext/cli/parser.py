"""Turns settings dataclasses into options and YAML, by jsonargparse."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, get_args, is_typeddict

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from rich.console import Console

from mast_ext.augment import AugmentationRecipe
from mast_ext.cli.errors import UsageError
from mast_ext.cli.help import HelpFormatter
from mast_ext.train.config import DEFAULT_AUGMENTATION
from mast_ext.train.errors import RunError
from mast_ext.train.state.run_directory import read_settings, with_new_names
from mast_ext.train.suggestions import choices_like, did_you_mean, settings_like

HARD_VIEWS = "--hard_views"

COUNT_EPOCHS = ("train.epochs", "optimizer.warmup")
"""Options in epochs, which other programs count in steps."""

RETIRED = {
    "train.tensorboard": "train.logger with tensorboard for true, csv for false",
}
"""What to write instead of options that were removed. Files may still have these settings."""


class Parser(ArgumentParser):
    """A parser that answers a wrong command line with one sentence.

    Attributes:
        method: The method on the command line, whose settings are suggested before others'.
    """

    method: str | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        explained = self._explain(" ".join(message.split()))
        raise UsageError(f"{explained} (options: {self.prog} --help)") from ex

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """The settings in a file, also under names that older runs wrote; an error names it."""
        try:
            written = read_settings(Path(path))
            settings = with_new_names(written)
            self.check_names(settings)
            if settings != written:
                return self.parse_string(yaml.safe_dump(settings), str(path), *args, **kwargs)
            return super().parse_path(path, *args, **kwargs)
        except RunError as error:
            raise UsageError(str(error)) from error
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error

    def check_names(self, values: Mapping[str, Any], group: str = "") -> None:
        """Raises a UsageError for the first name in a file of settings that is no setting.

        jsonargparse would do so later, when it no longer knows which file the name was in.
        """
        known, groups = self._names()
        for key, value in values.items():
            name = f"{group}{key}"
            if name in groups and isinstance(value, Mapping):
                self.check_names(value, f"{name}.")
            elif name in groups:
                hint = self._meant(name)
                self.error(f"{name} must be a mapping of settings, got {value!r}{hint}")
            elif name not in known:
                self.error(f"there is no setting {name}{self._meant(name)}")

    def _names(self) -> tuple[set[str], set[str]]:
        """Names of all settings, and of their groups."""
        names = {a.dest for a in self._actions if not a.dest.endswith(".help")}
        groups = {dest[:at] for dest in names for at, c in enumerate(dest) if c == "."}
        return names - groups, groups

    def _meant(self, name: str, dashes: str = "") -> str:
        """Asks for the settings that somebody may have meant by a name."""
        known, _ = self._names()
        remarks = dict.fromkeys(COUNT_EPOCHS, " (fractions allowed)") if "steps" in name else {}
        return did_you_mean(
            f"{dashes}{each}{remarks.get(each, '')}"
            for each in settings_like(name, known, self.method)
        )

    def _takes(self, word: str) -> list[str]:
        """The options that have this word among their choices, written with it."""
        return [
            f"{option} {word}"
            for option, action in self._option_string_actions.items()
            if word in (action.choices or ())
        ]

    def _as_list(self, name: str, count: str | None) -> str:
        """What an option expects that takes a list of ``count`` items, shown by its default."""
        default = self.get_default(name)
        example = default if isinstance(default, (list, tuple)) and default else (0.2, 1.0)
        written = f"[{','.join(map(str, example))}]"
        return f"expected a list{f' of {count}' if count else ''}, written as {written}."

    def _choices(self, option: str) -> str:
        """The choices of an option, to append to an error; empty if it has none."""
        choices = self._option_string_actions[option].choices
        return f": one of {', '.join(map(str, choices))}" if choices else ""

    def _keys(self, option: str) -> list[str]:
        """The keys of an option that takes mappings with certain keys; none of other options."""
        kinds = get_args(getattr(self._option_string_actions[option], "_typehint", None))
        return [key for kind in kinds if is_typeddict(kind) for key in kind.__annotations__]

    def _explain(self, message: str) -> str:
        _, groups = self._names()
        unknown = re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE)
        if unknown:
            option = unknown[1].split("=")[0]
            if not option.startswith("-") and "=" not in unknown[1]:
                return (
                    f"there is one argument too many, {option}{did_you_mean(self._takes(option))}"
                )
            if (name := option.removeprefix("--")) in RETIRED:
                return f"there is no option {option} any more: write --{RETIRED[name]}"
            return f"there is no option {option}{self._meant(option, '--')}"
        missing = re.match(r"the following arguments are required: (\w+)$", message)
        if missing and f"--{missing[1]}" in self._option_string_actions:
            return f"--{missing[1]} is missing{self._choices(f'--{missing[1]}')}"
        message = re.sub(r'^Parser key "([^"]+)": ', r"--\1: ", message)
        group = re.match(r"--(\w+): Unable to load config '(.*?)'", message)
        if group and group[1] in groups:
            hint = self._meant(group[1], "--")
            return f"--{group[1]} takes a file of settings, and {group[2]} is none{hint}"
        keys = re.match(r"--([\w.]+): Unexpected keys: \{'(\w+)'", message)
        if keys and (own := self._keys(f"--{keys[1]}")):
            return f"--{keys[1]} takes {', '.join(own)}, got {keys[2]!r}"
        message = re.sub(r"Expected a <class '(\w+)'>", r"expected \1", message)
        message = message.replace(
            "expected dict.", "expected a mapping, {name: value}, with a space after the colon."
        )
        message = re.sub(
            r"^--([\w.]+): expected (?:a )?tuple(?: with (\d+) elements)?\.",
            lambda found: f"--{found[1]}: {self._as_list(found[1], found[2])}",
            message,
            flags=re.IGNORECASE,
        )
        message = re.sub(r"Expected a typing\.Literal\[([^]]+)\]", r"expected one of \1", message)
        choice = re.search(r"expected one of ('.+')\. Got value: (\S+)", message)
        return message + did_you_mean(
            choices_like(choice[2], re.findall(r"'(.*?)'", choice[1])) if choice else ()
        )


def settings_parser(command: str, description: str, settings: type) -> Parser:
    """A parser with an option for every field of a settings dataclass, nested ones dotted."""
    parser = Parser(
        prog=f"mast-ext {command}",
        usage=f"mast-ext {command} [options]",
        description=description,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with settings.")
    for action in parser._actions:
        if action.dest == "print_config":  # added by --config
            action.help = "Print all settings as YAML, and exit."
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


def set_defaults_of_data(parser: Parser, name: str) -> None:
    """Sets the defaults that depend on the kind of images: what is done to a view."""
    if recipe := DEFAULT_AUGMENTATION.get(name):
        parser.set_defaults({"augment": asdict(recipe)})


def parse(parser: Parser, arguments: Sequence[str]) -> Namespace:
    """Values of a command line.

    ``--print_config`` is moved to the end: jsonargparse prints what it has read before it.
    """
    return parser.parse_args(sorted(arguments, key=_prints))


def _prints(argument: str) -> bool:
    return argument.split("=")[0] == "--print_config"


def build(parser: Parser, values: Namespace, settings: type, *others: str) -> Any:
    """The settings dataclass from parsed values; ``others`` are options that are no settings."""
    try:
        if "augment" in values:
            _require_augmentation(values.augment)
        made = vars(parser.instantiate(values))
        fields = {name: each for name, each in made.items() if name not in ("config", *others)}
        return settings(**fields)
    except (TypeError, ValueError) as error:  # a file may set anything to null
        raise UsageError(str(error)) from error


def _require_augmentation(values: Namespace) -> None:
    """Raises a ValueError as a recipe does, which does not know that its settings are a group."""
    try:
        AugmentationRecipe(**vars(values))
    except ValueError as error:
        raise ValueError(f"augment.{error}") from error


def options_in(arguments: Sequence[str], *, but: Sequence[str]) -> list[str]:
    """Names of the options on a command line, except those in ``but``."""
    options = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
    return [option for option in options if option not in but]


def output_console() -> Console:
    """Standard output for tables; wide enough for them when it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 120))
