"""The texts of ``--help``: what one needs first, the options of one method, or everything.

Options and what is said of them come from the docstrings of settings. The first sentence of each
has to do where a text has one line for an option.
"""

import argparse
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from jsonargparse import DefaultHelpFormatter

from mast_ext.cli.errors import UsageError
from mast_ext.train.suggestions import did_you_mean, similar

WIDTH = 80
INDENT = 27
ALL = "all"


@dataclass(frozen=True)
class Overview:
    """What the help of a command shows when it is asked for nothing else.

    Attributes:
        examples: Command lines, one a line.
        first: Names of the options that one needs first, by heading.
        given_elsewhere: Groups of options whose defaults are not known before the rest of the
            command line is: none are shown.
        apart: Groups of options that are shown only when asked for by name: those of methods.
        more: How to see more, one a line.
    """

    examples: str = ""
    first: Mapping[str, Sequence[str]] = field(default_factory=dict)
    given_elsewhere: Collection[str] = ()
    apart: Collection[str] = ()
    more: str = ""


class HelpFormatter(DefaultHelpFormatter):
    """Says nothing twice: choices stand where the option's value is named."""

    def _get_type_str(self, action: argparse.Action) -> str | None:
        found = super()._get_type_str(action)
        return None if found and "Literal" in found else found

    def _get_help_string(self, action: argparse.Action) -> str:
        return super()._get_help_string(action).replace("``", "`")


def shows_help(
    parser: argparse.ArgumentParser,
    overview: Overview,
    arguments: Sequence[str],
    method: str | None = None,
) -> bool:
    """Prints the help that a command line asks for, if it asks for any. See `help_text`."""
    topic = asked_help(arguments)
    if topic is None:
        return False
    groups = {ALL, *map(group_of, parser._actions)}
    if topic not in groups and any(not action.option_strings for action in parser._actions):
        topic = ""  # what follows --help is what the command is about
    print(help_text(parser, overview, topic, method))
    return True


def asked_help(arguments: Sequence[str]) -> str | None:
    """What ``--help`` on a command line asks for: a word, or nothing (""); None without it."""
    for at, word in enumerate(arguments):
        name, _, topic = word.partition("=")
        if name in ("-h", "--help"):
            following = arguments[at + 1] if at + 1 < len(arguments) else ""
            return topic or ("" if following.startswith("-") else following)
    return None


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The last value that a command line gives an option. The rest, maybe wrong, is not parsed."""
    value = None
    for at, word in enumerate(arguments):
        name, equals, given = word.partition("=")
        if name == option:
            value = given if equals else next(iter(arguments[at + 1 :]), None)
    return value


def help_text(
    parser: argparse.ArgumentParser, overview: Overview, topic: str, method: str | None = None
) -> str:
    """The text for a topic.

    Args:
        parser: It knows all options. What is not shown is taken out of its help.
        overview: What is shown without a topic.
        topic: ``all``, the name of a group of options, or "".
        method: The method that is trained, if the command line says one: without a topic its
            options are shown, and then those common to all methods.

    Raises:
        UsageError: There is no help on the topic.
    """
    for action in parser._actions:
        if group_of(action) in overview.given_elsewhere:
            action.default = argparse.SUPPRESS
    groups = {group_of(action) for action in parser._actions}
    topic = topic.replace("-", "_")
    if topic == ALL or not (topic or overview.first):
        return _options(parser, groups)
    if topic:
        if topic not in groups:
            hint = did_you_mean(f"--help {each}" for each in similar(topic, groups))
            raise UsageError(f"there is no help on {topic!r}{hint} (all options: --help {ALL})")
        return _options(parser, {topic})
    if method is None:
        return _overview(parser, overview)
    if method not in groups:
        hint = did_you_mean(similar(method, overview.apart))
        raise UsageError(f"there is no method {method!r}{hint}")
    parser._action_groups.sort(  # the method's before all others
        key=lambda group: all(group_of(action) != method for action in group._group_actions)
    )
    return _options(parser, groups - set(overview.apart) | {method}) + f"\n{overview.more}"


def group_of(action: argparse.Action) -> str:
    """The group of an option, ``train`` of ``--train.epochs``; "" for one without."""
    return action.dest.partition(".")[0] if "." in action.dest else ""


def _overview(parser: argparse.ArgumentParser, overview: Overview) -> str:
    actions = {action.dest: action for action in parser._actions}
    lines = [
        f"usage: {parser.usage}",
        "",
        str(parser.description),
        "",
        *_indented(overview.examples),
    ]
    for heading, names in overview.first.items():
        lines += ["", f"{heading}:"]
        for name in names:
            lines += _entry(actions[name])
    return "\n".join([*lines, "", overview.more])


def _indented(text: str) -> list[str]:
    return textwrap.indent(text, "  ").splitlines()


def _entry(action: argparse.Action) -> list[str]:
    """An option, the first sentence on it, its choices and its default."""
    what = re.split(r"[.;:]\s", (action.help or "").rstrip("."), maxsplit=1)[0].replace("``", "")
    if str(action.metavar).startswith("{"):
        what += ": " + str(action.metavar).strip("{}").replace(",", ", ")
    if isinstance(action.default, bool):
        what += f" [{str(action.default).lower()}]"
    elif isinstance(action.default, (str, int, float)) and action.default != argparse.SUPPRESS:
        default = action.default if isinstance(action.default, str) else f"{action.default:g}"
        what += f" [{default}]"
    name = action.option_strings[-1] if action.option_strings else action.dest.upper()
    return textwrap.wrap(
        what, WIDTH, initial_indent=f"  {name} ".ljust(INDENT), subsequent_indent=" " * INDENT
    )


def _options(parser: argparse.ArgumentParser, groups: Collection[str]) -> str:
    """The full text on the options of some groups."""
    shown = [action for action in parser._actions if not action.dest.endswith(".help")]
    for action in parser._actions:
        # A whole group as one option, which --config sets more easily.
        whole = any(each.dest.startswith(f"{action.dest}.") for each in shown)
        if action not in shown or whole or group_of(action) not in groups:
            action.help = argparse.SUPPRESS
    return parser.format_help()
