"""Settings from papers and from published benchmarks, as files for ``--config``.

``NAME/METHOD.yaml`` is one run. Its comments say where its numbers come from, and which of them
come from no paper. What every recipe leaves open is where the images are: ``data.path``.
"""

from pathlib import Path

from mast_ext.train.suggestions import did_you_mean, similar

RECIPES = {
    "cifar10-resnet18": "ResNet-18 with a 3x3 stem on CIFAR-10, one GPU",
    "imagenet-resnet50": "ResNet-50 on ImageNet, as in most papers",
    "imagenet-vits16": "ViT-S/16 on ImageNet, as in DINO and iBOT",
}
"""What each recipe is for, by name: a folder beside this file."""

_FOLDER = Path(__file__).parent


def methods_of(name: str) -> list[str]:
    """The methods that a recipe has settings for.

    Raises:
        ValueError: There is no such recipe.
    """
    if name not in RECIPES:
        hint = did_you_mean(similar(name, RECIPES))
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}{hint}")
    return sorted(path.stem for path in (_FOLDER / name).glob("*.yaml"))


def recipe_file(name: str, method: str) -> Path:
    """The file of settings of a recipe and a method.

    Raises:
        ValueError: There is no such recipe, or it has no settings for the method.
    """
    methods = methods_of(name)
    if method not in methods:
        hint = did_you_mean(f"--method {each}" for each in similar(method, methods))
        raise ValueError(
            f"recipe {name} has no settings for {method}: method must be one of"
            f" {', '.join(methods)}{hint}"
        )
    return _FOLDER / name / f"{method}.yaml"
