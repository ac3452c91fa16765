"""``mast-ext replay``: the step that made a loss NaN or infinite, once more, to see where."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mast_ext.cli.parser import Parser
from mast_ext.cli.pretrain import parse_settings
from mast_ext.train.replay import read_nonfinite, replay


def main(arguments: Sequence[str]) -> int:
    """Repeats the step and prints what was seen. Returns the exit status."""
    parser = Parser(
        prog="mast-ext replay",
        description="Repeats the step whose loss or gradient was NaN or infinite, from the last"
        " checkpoint before it, and says where in the networks that began. The run is not changed.",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="A run directory with a nonfinite_batch.json.")
    values = parser.parse_args(list(arguments))
    run, stored = read_nonfinite(Path(values.run))
    config = parse_settings(stored["settings"], run.nonfinite_batch)
    found = replay(config, run, stored, Console(stderr=True))
    batch = "the same samples and views" if found.same_batch else "other samples or views than then"
    print(f"step {found.step} again, {batch}")
    width = max(map(len, found.terms), default=0)
    for name, value in found.terms.items():
        print(f"  {name:<{width}}  {value:g}")
    print(f"first not finite: {found.origin or 'nothing this time'}")
    return 0
