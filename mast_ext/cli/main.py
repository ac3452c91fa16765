"""Entry point: finds the command, and turns errors that a user can mend into one sentence.

Commands are imported when they are called, so that ``doctor`` works with whatever is installed.
"""

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence

from mast_ext import __version__
from mast_ext.cli.errors import UsageError
from mast_ext.train.state.text import READABLE
from mast_ext.train.suggestions import did_you_mean, similar

COMMANDS = ("pretrain", "recipes", "evaluate", "report", "replay", "export", "bench", "doctor")
USAGE = """\
usage: mast-ext <command> [options]

  pretrain   train a backbone without labels, probe it, write a report
  recipes    settings from papers: a list, or one of them
  evaluate   what a backbone has learned: probes, fine-tuning, on these or other images
  report     a page of a run, finished or not, or one that compares several
  replay     the step that made a loss NaN once more, and where in the network it began
  export     the backbone of a run for timm, transformers, TorchScript or ONNX
  bench      how fast views are made, where a step's time goes, operators beside rivals
  doctor     what is installed, what is fast, what is missing

`mast-ext <command> --help` lists the options of a command, `mast-ext --version` says which
version this is.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The command line without the program's name; ``sys.argv`` by default.

    Returns:
        The exit status: 0, 1 for a run that failed, 2 for a wrong command line, 128 + n after
        signal n.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=READABLE)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"mast-ext {__version__}")
        return 0
    name, *rest = arguments
    try:
        return _command(name, rest)(rest)
    except KeyboardInterrupt as error:
        return _fail(": ".join(("interrupted", *map(str, error.args))), 130)
    except UsageError as error:
        return _fail(str(error), 2)
    except Exception as error:
        if _is_reported_elsewhere(error):
            return 1
        if os.environ.get("MAST_EXT_DEBUG") or not _is_for_users(error):
            raise
        return _fail(_told(error, rest), getattr(error, "status", 1))


def _command(name: str, arguments: Sequence[str]) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        hint = did_you_mean(similar(name, COMMANDS))
        raise UsageError(f"there is no command {name!r}: there are {', '.join(COMMANDS)}{hint}")
    if name != "doctor":
        from mast_ext.cli.doctor import require_training_packages

        try:
            require_training_packages()
        except ModuleNotFoundError:
            if {"-h", "--help"}.intersection(arguments):  # options come from these packages
                print(USAGE)
            raise
    return importlib.import_module(f"mast_ext.cli.{name}").main


def _is_for_users(error: Exception) -> bool:
    """Errors of settings, files and data. The others are bugs of ours and keep their traceback."""
    run_error = sys.modules.get("mast_ext.train.errors")
    own = (run_error.RunError,) if run_error is not None else ()
    torch = sys.modules.get("torch")
    own += (torch.OutOfMemoryError,) if torch is not None else ()  # of a GPU
    return isinstance(error, (ValueError, OSError, ModuleNotFoundError, MemoryError, *own))


def _told(error: Exception, arguments: Sequence[str]) -> str:
    """The message of an error, with a hint where a file cannot be decoded."""
    told = str(error) or type(error).__name__
    data = sys.modules.get("mast_ext.data")
    bad = data is not None and isinstance(error, data.BadImageError)
    settled = any(each.startswith(("--data.on_bad_image", "--resume")) for each in arguments)
    if bad and not settled and not isinstance(error.__cause__, ModuleNotFoundError):
        told += " (a run with --data.on_bad_image skip leaves such files out)"
    return told


def _is_reported_elsewhere(error: Exception) -> bool:
    """Whether this process ends because of another one, which says what was wrong."""
    errors = sys.modules.get("mast_ext.train.errors")
    return errors is not None and isinstance(error, errors.EndedByAnother)


def _fail(message: str, status: int) -> int:
    print("mast-ext: " + " ".join(message.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
