"""A first day with mast-ext: from a folder of photographs to a backbone in timm.

    python examples/walkthrough.py --out walkthrough

takes a minute or two on two CPU cores and downloads nothing: the photographs are procedural shapes,
written as JPEG and PNG files. Every command is printed before it runs, as you would type it in the
folder of --out, and what is said of it is checked. The runs are far too short to learn much.
"""

import argparse
import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Literal

import timm
import torch
import yaml
from PIL import Image

from mast_ext.cli.main import main as program
from mast_ext.data import open_source
from mast_ext.models import load_backbone

COLORS = ("red", "lime", "azure", "violet")


def main() -> None:
    """Goes through the chapters, each a function below."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("walkthrough"), help="a new folder")
    folder = parser.parse_args().out
    if folder.exists():
        parser.error(f"{folder} exists: choose another --out, or remove it")
    folder.mkdir(parents=True)
    os.chdir(folder)

    take_photographs()
    find_settings()
    train_with_an_interruption()
    train_another_method()
    compare()
    evaluate()
    use_elsewhere()
    look_into_a_failure()
    chapter("That was it. The comparison is a page to look at:")
    print(f"  {Path('comparison.html').absolute()}")


def take_photographs() -> None:
    """Writes the images: those of four colors, whose names are the classes."""
    chapter("Photographs, in a folder for each class, beside some for tests")
    splits: tuple[tuple[Literal["train", "test"], int], ...] = (("train", 900), ("test", 300))
    for split, count in splits:
        shapes = open_source("shapes", split, size=64, max_images=count)
        names = shapes.classes["hue"]
        for i, hue in enumerate(shapes.labels["hue"]):
            if names[hue] in COLORS:
                place = Path("photos", split, names[hue])
                place.mkdir(parents=True, exist_ok=True)
                pixels = shapes.image(i).permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(place / f"{i:03}.{'jpg' if i % 2 else 'png'}")
    for split, _ in splits:
        files = list(Path("photos", split).rglob("*.*"))
        print(f"  photos/{split}: {len(files)} files in {', '.join(COLORS)}")


def find_settings() -> None:
    """From a paper's settings to a file of our own."""
    chapter("What can it do? And which settings has a paper that did something alike?")
    mast_ext("--help")
    mast_ext("recipes")
    recipe = mast_ext("recipes", "cifar10-resnet18", "--method", "simclr", shown=False)

    chapter("Too long for a first try on a CPU. So we keep the recipe, and change a few lines")
    settings = yaml.safe_load(recipe)
    settings["data"] = {"name": "folder", "path": "photos"}
    settings["model"] = {"name": "resnet_small", "small_images": False}
    settings["augment"]["size"] = 32
    settings["optimizer"] |= {"name": "adamw", "lr": 0.004, "warmup": 1}
    settings["train"] = {"epochs": 4, "batch_size": 64, "logger": "csv", "log_every": 1}
    settings["evaluation"] = {"neighbors": [20]}
    Path("mine.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    print(Path("mine.yaml").read_text())


def train_with_an_interruption() -> None:
    """A run that is stopped goes on, and ends as if nothing had happened."""
    chapter("The first run. After some steps somebody needs the machine, and presses Ctrl-C")
    options = ["pretrain", "--config", "mine.yaml", "--out", "runs/simclr"]
    print(f"$ mast-ext {shlex.join(options)}", flush=True)
    command = [sys.executable, "-m", "mast_ext", *options]
    with subprocess.Popen(command) as process:
        while len(metrics("runs/simclr")) < 10 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    check(process.returncode == 128 + signal.SIGINT, "the exit status tells the signal")
    done = len(metrics("runs/simclr"))

    chapter(f"{done} steps are done and saved. Later the run goes on from there")
    mast_ext("pretrain", "--resume", "runs/simclr")
    steps = [int(row["step"]) for row in metrics("runs/simclr")]
    check(steps == [*range(1, len(steps) + 1)], "no step is missing, none was done twice")
    check(len(steps) > done, "the run went on")

    chapter("Has it changed anything? The same run without an interruption")
    mast_ext("pretrain", "--config", "mine.yaml", "--out", "runs/undisturbed")
    weights = [
        load_backbone(Path("runs", run, "backbone.safetensors"))[0].state_dict()
        for run in ("simclr", "undisturbed")
    ]
    same = all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    check(same, "both runs end with the same weights, bit for bit")


def train_another_method() -> None:
    """What comes later on a command line overrides the file."""
    chapter("Another method, with the same settings")
    mast_ext(
        *("pretrain", "--config", "mine.yaml", "--method", "vicreg", "--out", "runs/vicreg"),
        *("--vicreg.projector", "[256,256]"),
    )


def compare() -> None:
    """A report of several runs."""
    chapter("Both beside each other, in one page that can be sent around")
    mast_ext("report", "runs/simclr", "runs/vicreg", "--out", "comparison.html")
    page = Path("comparison.html").read_text()
    check("simclr" in page and "vicreg" in page, "the page shows both")
    check("<script src" not in page and '<img src="http' not in page, "it fetches nothing")


def evaluate() -> None:
    """On the photographs, and on other images."""
    chapter("How good are the features, and how good a start for training with few labels?")
    mast_ext(
        *("evaluate", "runs/simclr", "--measure", "probes,finetune,augmentations"),
        *("--finetune.labels", "0.1,1", "--finetune.epochs", "20", "--json", "simclr.json"),
    )
    rows = results("simclr.json")
    print("rows of simclr.json:", ", ".join(" ".join(names).strip() for names in rows))
    at_the_end = results("runs/simclr/report/results.json")["simclr", "backbone"]["accuracy"]
    again = rows["simclr", "backbone"]["accuracy"]
    check(at_the_end.items() <= again.items(), "probes are those of the end of training")
    check(
        list(again) == ["linear probe", "k-NN 20", "fine-tuned 10%", "fine-tuned 100%"],
        "all that was asked for is there",
    )

    chapter("And on other images than it has seen?")
    mast_ext(
        *("evaluate", "runs/simclr", "--data.name", "shapes", "--data.max_images", "500"),
        *("--data.max_test_images", "200", "--data.size", "64", "--reference", "false"),
    )


def use_elsewhere() -> None:
    """From the run to timm, and back."""
    chapter("The backbone for other programs")
    mast_ext("export", "runs/simclr", "--format", "timm")
    folder = Path("runs/simclr/backbone-timm").absolute()
    print(f'>>> timm.create_model("local-dir:{folder}", pretrained=True)')
    exported = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    trained = load_backbone(Path("runs/simclr/backbone.safetensors"))[0].eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        equal = torch.allclose(exported(images), trained(images), rtol=1e-4, atol=1e-5)
    check(equal, "timm's model gives the features of the run")

    chapter("It can be evaluated from there as well")
    photos = ("--data.name", "folder", "--data.path", "photos", "--evaluation.neighbors", "[20]")
    mast_ext("evaluate", "runs/simclr/backbone-timm", *photos, "--json", "exported.json")
    found = results("exported.json")["backbone-timm", "backbone"]
    expected = results("runs/simclr/report/results.json")["simclr", "backbone"]
    check(found["accuracy"] == expected["accuracy"], "with the same numbers")


def look_into_a_failure() -> None:
    """Finds where in the network a loss became NaN."""
    chapter("What if a loss becomes NaN? Here the learning rate is absurd")
    options = ("--optimizer.name", "sgd", "--optimizer.lr", "1e30", "--out", "runs/broken")
    mast_ext("pretrain", "--config", "mine.yaml", *options, status=1)
    chapter("It says what to do next: the same step again, watched closely")
    mast_ext("replay", "runs/broken")


def mast_ext(*words: str, status: int = 0, shown: bool = True) -> str:
    """Runs a command in this process, which is quicker; prints and returns its output."""
    print(f"$ mast-ext {shlex.join(words)}", flush=True)
    output = StringIO()
    with redirect_stdout(output):
        found = program(words)
    if shown:
        print(output.getvalue(), flush=True)
    check(found == status, f"mast-ext {words[0]} ends with status {status}")
    return output.getvalue()


def metrics(run: str) -> list[dict[str, str]]:
    """What a run has written of its steps, also while it is at work."""
    path = Path(run, "metrics.csv")
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def results(path: str) -> dict[tuple[str, str], dict]:
    """Rows of numbers by model and representation."""
    rows = json.loads(Path(path).read_text())["rows"]
    return {(row["model"], row["part"]): row for row in rows}


def chapter(title: str) -> None:
    """Prints a heading."""
    print(f"\n{title}\n{'-' * len(title)}", flush=True)


def check(holds: bool, what: str) -> None:
    """Ends the program unless what is said holds."""
    if not holds:
        sys.exit(f"this does not hold: {what}")
    print(f"✓ {what}", flush=True)


if __name__ == "__main__":
    main()
