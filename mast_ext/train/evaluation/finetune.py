"""Fine-tunes a copy of a backbone with a new classifier, on all labels or on some."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, islice, repeat

import numpy as np
import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from mast_ext.augment import AugmentationRecipe, ComposedPolicy, ViewLoader, build_loader
from mast_ext.data import Source
from mast_ext.models import to_channels_last
from mast_ext.models.backbones import at_any_size
from mast_ext.train.config import FinetuneConfig
from mast_ext.train.errors import RunError
from mast_ext.train.evaluation.features import center_views
from mast_ext.train.evaluation.images import LabeledImages
from mast_ext.train.evaluation.subsets import Subset, labeled_share
from mast_ext.train.loop.optimizers import warmup_cosine

# The semi-supervised protocol of VICReg (Bardes et al., ICLR 2022; the commands of its repository's
# README with the evaluate.py there): 20 epochs of SGD with momentum 0.9 and without weight decay,
# 256 images a step, rates that fall by a cosine, random crops and flips, and these rates of the
# backbone and the classifier for 1 % and for 10 % of ImageNet's labels. SimCLR's (Chen et al., ICML
# 2020, appendix B.5) is alike, with one rate for both. The rate falls at every step here.
EPOCHS = 20
FEW, RATES_FOR_FEW, RATES = 0.01, (0.03, 0.08), (0.01, 0.1)

FEWEST_STEPS = 500
"""Of a training whose epochs nobody chose: 20 epochs of few images are too few steps. It is the
shortest schedule for small data sets in BiT (Kolesnikov et al., ECCV 2020)."""

_CHECKED_EVERY = 100  # steps: reading a loss makes the host wait for a GPU


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuned network says.

    Attributes:
        predictions: Class ids of the test images, ``[M]`` int64, by factor.
        images: How many training images had labels.
        steps: How many steps it took.
    """

    predictions: dict[str, Tensor]
    images: int
    steps: int


def finetune(
    backbone: nn.Module,
    images: LabeledImages,
    recipe: AugmentationRecipe,
    config: FinetuneConfig,
    share: float,
    *,
    batch_size: int = 512,
    device: torch.device | str = "cpu",
    workers: int = 0,
    keep_gb: float = 0.0,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> Finetuned:
    """Trains a copy of the backbone and a linear classifier on its features.

    Of several factors one network learns all, by the mean of their cross entropies. Training
    images are cropped and flipped as `training_recipe` says, and test images are seen as they are
    (their largest central square). All randomness follows from ``config.seed``.

    Args:
        backbone: Images ``[N, C, S, S]`` to features ``[N, F]``; it is not changed.
        images: Labeled images of both splits.
        recipe: Size, normalization, crops and flips.
        config: Settings.
        share: Which share of the labels is used, see `labeled_share`.
        batch_size: Images per step when the test images are classified.
        device: Where to compute.
        workers: Threads that render training images ahead.
        keep_gb: See `build_loader`, of training images.
        progress: Is told how many steps are done, and of how many.

    Raises:
        ValueError: ``share`` of the images are fewer than the classes of a factor.
        RunError: The loss became NaN or infinite.
    """
    chosen = Subset(images.train, labeled_share(images.train.labels, share, config.seed))
    # The classes that there are, not their ids: these may be large where there are two classes.
    ids = {name: np.unique(labels) for name, labels in images.train.labels.items()}
    classes = {name: len(present) for name, present in ids.items()}
    chosen.labels = {name: np.searchsorted(ids[name], own) for name, own in chosen.labels.items()}
    loader = build_loader(
        chosen,
        ComposedPolicy(training_recipe(recipe, images.train), views=1),
        batch_size=min(config.batch_size, len(chosen)),
        seed=config.seed,
        workers=workers,
        keep_gb=keep_gb,
    )
    epochs = EPOCHS if config.epochs is None else config.epochs
    steps = max(1, round(epochs * len(loader)))
    if config.epochs is None:
        steps = max(steps, FEWEST_STEPS)
    with torch.random.fork_rng(), deterministic():
        seed_everything(config.seed, workers=True, verbose=False)
        network = _with_classifier(backbone, recipe, sum(classes.values())).to(device)
        _train(network, loader, classes, config, share, steps, device, progress)
        found = _predict(network, images.test, recipe, classes, batch_size, device, workers)
    predictions = {name: torch.from_numpy(ids[name])[places] for name, places in found.items()}
    return Finetuned(predictions, len(chosen), steps)


def training_recipe(recipe: AugmentationRecipe, source: Source) -> AugmentationRecipe:
    """The recipe's crops and flips, without what changes colors.

    Images of ``shapes`` stay as they are: crops and flips would change what their labels say.
    """
    return recipe.only() if source.name == "shapes" else recipe.only("crop", "flip")


def learning_rates(config: FinetuneConfig, share: float) -> tuple[float, float]:
    """Of the backbone and of the classifier, per 256 images."""
    lr, head_lr = RATES_FOR_FEW if share <= FEW else RATES
    return (
        lr if config.lr is None else config.lr,
        head_lr if config.head_lr is None else config.head_lr,
    )


def _with_classifier(
    backbone: nn.Module, recipe: AugmentationRecipe, classes: int
) -> nn.Sequential:
    """A copy of the backbone, and a classifier that begins as VICReg's."""
    copy = to_channels_last(deepcopy(backbone).cpu())
    with torch.no_grad():
        width = copy.eval()(torch.zeros(1, recipe.channels, recipe.size, recipe.size)).shape[1]
    head = nn.Linear(width, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return nn.Sequential(copy, head)


def _train(
    network: nn.Sequential,
    loader: ViewLoader,
    classes: Mapping[str, int],
    config: FinetuneConfig,
    share: float,
    steps: int,
    device: torch.device | str,
    progress: Callable[[int, int], None],
) -> None:
    lr, head_lr = learning_rates(config, share)
    scale = loader.batch_size / 256
    groups = [
        {"params": list(network[0].parameters()), "lr": lr * scale},
        {"params": list(network[1].parameters()), "lr": head_lr * scale},
    ]
    optimizer = SGD(groups, momentum=0.9)
    schedule = LambdaLR(
        optimizer, lambda step: warmup_cosine(step, warmup=0, total=steps, floor=0.0)
    )
    autocast = torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=config.precision == "bf16-mixed"
    )
    network.train()
    batches = chain.from_iterable(loader.on(device) for _ in repeat(None))
    checked = torch.zeros((), device=device)
    for step, batch in enumerate(islice(batches, steps), start=1):
        images = batch.images[0].contiguous(memory_format=torch.channels_last)
        with autocast:
            together = network[1](at_any_size(network[0], images))
        scores = together.float().split(list(classes.values()), dim=1)
        losses = [
            cross_entropy(logits, batch.labels[name])
            for name, logits in zip(classes, scores, strict=True)
        ]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        checked += loss.detach()
        read = step % _CHECKED_EVERY == 0 or step == steps
        if read and not checked.isfinite():
            raise RunError(
                f"fine-tuning with {100 * share:g}% of the labels diverged: its loss is not finite"
                f" by step {step}; lower finetune.lr ({lr:g}) and finetune.head_lr ({head_lr:g})"
            )
        progress(step, steps)


@torch.inference_mode()
def _predict(
    network: nn.Module,
    source: Source,
    recipe: AugmentationRecipe,
    classes: Mapping[str, int],
    batch_size: int,
    device: torch.device | str,
    workers: int,
) -> dict[str, Tensor]:
    network.eval()
    found = torch.cat(
        [network(images) for images in center_views(source, recipe, batch_size, device, workers)]
    )
    parts = found.split(list(classes.values()), dim=1)
    return {name: part.argmax(1).cpu() for name, part in zip(classes, parts, strict=True)}


@contextmanager
def deterministic() -> Iterator[None]:
    """Makes torch choose operators that give the same bits every time, where it has them."""
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor is a debugging aid that costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
