"""MAST against VICReg and SimCLR on `shapes`: linear probes of every factor over seeds.

    python benchmarks/train/mast_shapes.py --report benchmarks/results/mast-shapes.md

trains every variant with every seed through the program (`mast_ext.train`), with as many image
forwards each, and writes a table of mean ± standard deviation. Runs that are there already (in
``--runs``) are not repeated, so an interrupted call goes on where it stopped.
"""

import argparse
import json

from mast_variants import VARIANTS
from runs import add_arguments, mean_and_spread, network, plan, train_all, write_table

FACTORS = ("shape", "hue", "size", "position", "rotation", "texture")
LINEAR = "linear probe"
REFERENCES = ("untrained", "chance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, epochs=16, runs="runs/mast-shapes")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--data-seed", type=int, default=0, help="Seed of the images.")
    values = parser.parse_args()

    data = [f"--data.seed={values.data_seed}", *network(values.width)]
    variants = {name: VARIANTS[name] for name in values.variants}
    runs = {
        key: json.loads((run / "report" / "results.json").read_text())["rows"]
        for key, run in train_all(plan(variants, values, data), values).items()
    }
    rows = []
    for variant in (*values.variants, None):  # the references come from the first variant's runs
        of_seeds = [runs[variant or values.variants[0], seed] for seed in values.seeds]
        rows += [
            cells(variant or same[0]["model"], same)
            for same in zip(*of_seeds, strict=True)
            if (same[0]["model"] in REFERENCES) == (variant is None)
        ]
    wide = f", of a network {values.width} times as wide as resnet_small"
    wide = "" if values.width == 1 else wide
    write_table(
        "MAST on `shapes`",
        [
            f"Linear probes (accuracy in %), mean ± standard deviation over seeds {values.seeds}.",
            f"Every run has the image forwards of {values.epochs:g} epochs of two views of 8,192"
            f" images{wide}.",
        ],
        ["", "", *FACTORS],
        rows,
        values,
    )


def cells(name: str, seeds: tuple[dict, ...]) -> list[str]:
    """One row of the table, of the same representation in every seed's results."""
    accuracies = [[row["accuracy"][LINEAR][factor] for row in seeds] for factor in FACTORS]
    return [name, seeds[0]["part"], *map(mean_and_spread, accuracies)]


if __name__ == "__main__":
    main()
