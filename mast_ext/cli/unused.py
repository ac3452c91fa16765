"""Options that change nothing in a run as its settings are, which are refused."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

from mast_ext.cli.errors import UsageError
from mast_ext.cli.parser import options_in
from mast_ext.methods import METHODS
from mast_ext.train.config import EvaluateConfig, PretrainConfig


def refuse_unused(arguments: Sequence[str], unused: Mapping[str, str]) -> None:
    """Refuses options that change nothing.

    Args:
        arguments: The command line, as `canonical` gives it. Files of settings may have settings
            that change nothing: those of runs have all that there are.
        unused: Names of settings, or of groups of them, and for each why it changes nothing.

    Raises:
        UsageError: One of them is on the command line.
    """
    for option in options_in(arguments, but=[]):
        name = option.removeprefix("--")
        for setting, why in unused.items():
            if name == setting or name.startswith(f"{setting}."):
                raise UsageError(f"{option} changes nothing: {why}")


def unused_in_training(config: PretrainConfig, methods: Sequence[str]) -> dict[str, str]:
    """Settings that change nothing in a run which trains these methods, and why."""
    unused = _unused(config)
    trained = f"{methods[0]} is trained" + "".join(
        f", and {each} beside it" for each in methods[1:]
    )
    if config.baseline == config.method and len(methods) == 1:
        unused["baseline"] = (
            f"{config.method} is trained without EquiMod and hard views, as its baseline would be"
        )
    for name in METHODS:
        if name not in methods:
            unused[name] = f"{trained} (method, baseline)"
    for group, switch, options in (
        ("equimod", "weight", config.equimod),
        ("hard_views", "views", config.hard_views),
    ):
        if not getattr(options, switch):
            names = [f"{group}.{each.name}" for each in fields(options) if each.name != switch]
            unused |= dict.fromkeys(names, f"{group}.{switch} is 0, which leaves it out")
    if config.hard_views.strategy != "softmax":
        why = f"hard_views.strategy is {config.hard_views.strategy}, and it is for softmax"
        unused.setdefault("hard_views.temperature", why)
    return unused


def unused_in_evaluation(config: EvaluateConfig) -> dict[str, str]:
    """Settings that change nothing in an evaluation, and why."""
    unused = _unused(config)
    for group, kind in (
        ("finetune", "finetune"),
        ("evaluation.neighbors", "probes"),
        ("evaluation.temperature", "probes"),
    ):
        if kind not in config.measured:
            unused[group] = f"--measure does not name {kind}"
    if config.model.name is None:
        why = "it is for files of weights alone, of the network that --model.name names"
        unused |= dict.fromkeys(("model.small_images", "model.timm_args"), why)
    return unused


def _unused(config: PretrainConfig | EvaluateConfig) -> dict[str, str]:
    """Settings of the procedural images, where other images are used."""
    if config.data.name == "shapes":
        return {}
    why = f"data.name is {config.data.name}, and it is for shapes"
    return dict.fromkeys(("data.size", "data.seed"), why)
