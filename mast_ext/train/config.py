"""All settings of a run, as frozen dataclasses that check themselves.

The command line, the YAML file of ``--config`` and the ``config.yaml`` of a run directory all
describe a `PretrainConfig`.
"""

import dataclasses
import glob
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mast_ext.augment import AugmentationRecipe
from mast_ext.checks import require_field_types, require_integer, require_number, require_positive
from mast_ext.data import SOURCES
from mast_ext.methods import METHODS, EquiModOptions, HardViewOptions
from mast_ext.train.errors import SettingsError
from mast_ext.train.suggestions import did_you_mean, similar

Config = TypeVar("Config")
Item = TypeVar("Item")

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
"""What `TrainConfig.logger` may name."""

_LARGEST_SEED = 2**32 - 1
"""Of NumPy's generator, which is seeded as the others are."""


@dataclass(frozen=True)
class DataConfig:
    """Where images come from.

    Attributes:
        name: Kind. ``shapes`` are procedural, with ground-truth factors; ``folder`` holds image
            files, ``shards`` WebDataset's tar archives, ``huggingface`` a table of the package
            datasets, ``numpy`` arrays; ``cifar10`` and ``cifar100`` are as published, unpacked.
        path: Where the images are. Of a folder: ``DIR/train/<class>/…`` with ``test/`` or ``val/``,
            ``DIR/<class>/…``, or ``DIR/…`` without labels. Of shards: ``DIR/train/*.tar`` with
            ``test/`` or ``val/``, or ``DIR/*.tar``; or a pattern of archives. Of huggingface: what
            ``save_to_disk`` wrote, or Parquet files, a folder or a pattern of them. Of numpy: a
            ``.npz`` or ``.npy`` file, or a folder of ``.npy`` files.
        image_column: The images' column (huggingface) or array (numpy: ``images`` by default,
            beside ``train_`` and ``test_``).
        label_column: That of the labels (numpy: ``labels``).
        channels: Of the images, by default their own. 3 makes gray ones RGB, 1 the reverse.
        bits: Of a channel, 8 or 16. By default 16 if all images have them, else 8, which is the
            upper half of 16.
        size: Side of the images that ``shapes`` renders, in pixels.
        seed: Seed of the images that ``shapes`` renders.
        max_images: Use at most this many training images.
        max_test_images: Use at most this many test images.
        on_bad_image: Stop at an unreadable image, naming it, or skip and count it.
        workers: Background threads that prepare batches. By default none when training
            on the CPU, which needs its cores itself, and on a GPU one less than this process's
            share of the cores, 16 at most.
        backend: What renders views: ``torchvision``, ``dali``, or ``auto``: DALI for what only it
            can do (``fused``, ``gpu``), else torchvision, which is faster on a CPU.
        photometric: ``exact`` changes colors as torchvision does; ``fused`` (of DALI) is another
            recipe, faster with DALI: contrast about the middle level, hue turned in YIQ.
        device: Where views are rendered; ``gpu`` decodes there, too.
        keep_gb: Gigabytes of memory of each process in which training images are kept once they are
            decoded, if all together take no more; 0 keeps none. Not those that DALI renders.
    """

    name: Literal["shapes", "folder", "shards", "huggingface", "numpy", "cifar10", "cifar100"] = (
        "shapes"
    )
    path: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    channels: int | None = None
    bits: int | None = None
    size: int = 32
    seed: int = 0
    max_images: int | None = None
    max_test_images: int | None = None
    on_bad_image: Literal["error", "skip"] = "error"
    workers: int | None = None
    backend: Literal["auto", "torchvision", "dali"] = "auto"
    photometric: Literal["exact", "fused"] = "exact"
    device: Literal["cpu", "gpu"] = "cpu"
    keep_gb: float = 1.0

    def __post_init__(self) -> None:
        require_field_types(self, "data.")
        if self.name != "shapes" and not self.path:
            raise ValueError(
                f"data.name {self.name} needs data.path, the folder or file with the images"
            )
        if self.name == "shapes" and self.path:
            raise ValueError(
                f"data.path is {self.path}, but data.name is shapes, which are made up: say"
                " --data.name folder (or what else they are: --help data)"
            )
        _at_least(self, 1, "data.size")
        _at_least(self, 0, "data.seed", "data.keep_gb")
        if self.bits not in (None, 8, 16):
            raise ValueError(f"data.bits must be 8 or 16, got {self.bits}")
        for name in ("image_column", "label_column"):
            if getattr(self, name) is not None and self.name not in ("huggingface", "numpy"):
                raise ValueError(f"data.{name} is for data.name huggingface or numpy alone")
        _at_least(self, 0, "data.workers")
        _at_least(self, 1, "data.max_images", "data.max_test_images", "data.channels")


DEFAULT_AUGMENTATION: dict[str, AugmentationRecipe] = {
    # Shapes are small and lie in a corner: smaller crops would often miss them. Hues change fully,
    # so that a method that is invariant to augmentations has to lose one of the factors.
    "shapes": AugmentationRecipe(crop_scale=(0.5, 1.0), hue=0.5),
    **{name: AugmentationRecipe() for name in SOURCES if name != "shapes"},
}
"""Default augmentations by `DataConfig.name`."""

_OF_THE_DATA = AugmentationRecipe()  # stands for the default of the images, which it is replaced by


def _resolve_augmentation(config: "EvaluateConfig | PretrainConfig") -> None:
    """Puts the default of the kind of images in its place where no augmentation was given."""
    if config.augment is _OF_THE_DATA:
        object.__setattr__(config, "augment", DEFAULT_AUGMENTATION[config.data.name])


@dataclass(frozen=True)
class ModelConfig:
    """The backbone.

    Attributes:
        name: Any timm model, or one of ours. These are for small images on a CPU:
            ``resnet_small`` (a narrow ResNet) and ``vit_small_images`` (a vision transformer of
            four blocks).
        small_images: For ResNets: a 3x3 stem without max-pool. By default on for ResNets when
            views are at most 64 pixels wide.
        weights: File with weights to start from. By default they are random. A run's
            ``backbone.safetensors``, one of its checkpoints, or weights of the same timm model,
            saved by safetensors or ``torch.save``. The run keeps a copy.
        timm_args: Further arguments of ``timm.create_model``.
    """

    name: str = "resnet_small"
    small_images: bool | None = None
    weights: str | None = None
    timm_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_field_types(self, "model.")
        # timm's name for weights, which is no property of the network.
        others = dict(self.timm_args)
        path = others.pop("checkpoint_path", None)
        if path and self.weights:
            raise ValueError(
                f"model.weights is {self.weights} and checkpoint_path in model.timm_args is {path}:"
                " leave one of them out"
            )
        if path:
            object.__setattr__(self, "weights", str(path))
        # As a run's file gives them back, in which tuples are lists.
        object.__setattr__(self, "timm_args", _plain(others))

    @property
    def start(self) -> str:
        """What tables call the network before training."""
        return "starting weights" if self.weights else "untrained"


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and schedule.

    Attributes:
        name: Optimizer. ``sgd`` has momentum 0.9, as ``lars`` has.
        lr: Peak learning rate per 256 images. The rate used is ``lr * batch_size / 256``. The
            default is made for ``adamw``; ``lars`` wants one of the order of 1.
        bias_lr: Learning rate of biases and norms relative to that of weights. Barlow Twins wants
            0.024 with ``lars``, which scales the steps of weights alone.
        weight_decay: Decay of weights. It is not applied to biases, norms and masks.
        final_weight_decay: Where weight decay ends, by half a cosine; by default it is constant.
        clip: Largest Euclidean norm of all gradients together, above which they are scaled down to
            it; 0 does not clip.
        warmup: Epochs (fractions allowed) of linear warm-up. Those of the training at most count.
        min_lr: The cosine schedule ends at this fraction of the peak.
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = 8e-3
    bias_lr: float = 1.0
    weight_decay: float = 1e-4
    final_weight_decay: float | None = None
    clip: float = 0.0
    warmup: float = 1.0
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        require_field_types(self, "optimizer.")
        require_positive("optimizer.lr", self.lr)
        for name in ("bias_lr", "weight_decay", "final_weight_decay", "clip", "warmup"):
            if getattr(self, name) is not None:
                require_number(f"optimizer.{name}", getattr(self, name), 0)
        require_number("optimizer.min_lr", self.min_lr, 0, 1)


@dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    Attributes:
        epochs: Passes over the images (fractions allowed).
        batch_size: Images per step of all processes. Each gives as many views as the method wants.
        devices: Processes that train together on this machine. Each has a GPU of its own, or none
            has one. Under torchrun or SLURM, which start them, their number counts instead.
        accumulate: Parts in which a process's share of a batch goes through, one after the other,
            before the weights change. Each part has its own negatives and batch statistics.
        sync_batchnorm: Whether batch norm takes its statistics over all processes. Otherwise every
            process has its own, and the first one's running averages count.
        accelerator: Where to train. ``auto`` takes a GPU when there is one.
        precision: Number format. ``bf16-mixed`` is PyTorch's autocast.
        checkpoint_every: Steps between checkpoints; there is one at every epoch's end, too.
        log_every: Steps between rows of metrics.
        rank_every: Steps between measurements of how many dimensions the backbone's features and
            the embedding use (RankMe and LiDAR), which stand in the next row of metrics; 0 measures
            none. On a CPU one takes up to the time of one step, after the first, which reads the
            images.
        logger: What gets the rows of metrics, too: ``csv`` (nothing but ``metrics.csv``, which is
            always written), ``tensorboard``, ``wandb``, ``mlflow``, or several of them, as
            ``tensorboard,wandb``.
        progress: Progress bar: ``auto`` shows one when standard error is a terminal.
    """

    epochs: float = 16.0
    batch_size: int = 128
    devices: int = 1
    accumulate: int = 1
    sync_batchnorm: bool = True
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    checkpoint_every: int = 100
    log_every: int = 10
    rank_every: int = 100
    logger: tuple[str, ...] | str = "tensorboard"
    progress: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        require_field_types(self, "train.")
        require_positive("train.epochs", self.epochs)
        _at_least(self, 2, "train.batch_size")
        names = ("devices", "accumulate", "checkpoint_every", "log_every")
        _at_least(self, 1, *(f"train.{name}" for name in names))
        _at_least(self, 0, "train.rank_every")
        if not self.loggers or not set(self.loggers) <= set(LOGGERS):
            raise ValueError(
                f"train.logger must be one or more of {', '.join(LOGGERS)}, got {self.logger!r}"
            )

    @property
    def loggers(self) -> tuple[str, ...]:
        """Those of ``logger``, each once."""
        return _each_once(self.logger, str)

    def share_of_batch(self, processes: int) -> int:
        """Images per step of each of several processes.

        Raises:
            SettingsError: The batch does not divide into equal parts, or has parts of one image.
        """
        parts = processes * self.accumulate
        if self.batch_size % parts:
            raise SettingsError(
                f"train.batch_size {self.batch_size} does not divide into {parts} equal parts"
                f" (processes: {processes}, train.accumulate: {self.accumulate})"
            )
        alone = self.accumulate > 1 or (processes > 1 and not self.sync_batchnorm)
        if alone and self.batch_size == parts:
            raise SettingsError(
                f"train.batch_size {self.batch_size} leaves one image for each of {parts} parts"
                f" (processes: {processes}, train.accumulate: {self.accumulate}), and a part has"
                " only its own to compare with: at least two are needed"
            )
        return self.batch_size // processes


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured after training.

    Attributes:
        neighbors: Neighbors of the weighted k-NN classifiers, one number or several, as ``20,200``.
            Those of more neighbors than there are training images are left out.
        temperature: Temperature of the neighbors' weights.
        batch_size: Images per step of feature extraction.
    """

    neighbors: tuple[int, ...] | int | str = (20, 200)
    temperature: float = 0.07
    batch_size: int = 512

    def __post_init__(self) -> None:
        require_field_types(self, "evaluation.")
        try:
            valid = bool(self.counts) and min(self.counts) >= 1
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(
                "evaluation.neighbors must be one or more positive numbers, as 20,200, got"
                f" {self.neighbors!r}"
            )
        require_positive("evaluation.temperature", self.temperature)
        _at_least(self, 1, "evaluation.batch_size")

    @property
    def counts(self) -> tuple[int, ...]:
        """Those of ``neighbors``, each once."""
        return _each_once(self.neighbors, int)


MEASUREMENTS = ("probes", "finetune", "augmentations")
"""What `EvaluateConfig.measure` may name."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of the backbone with a new linear classifier.

    Attributes:
        labels: Shares of the labels, with a training for each, as ``0.01,0.1,1``. Every class keeps
            its share, one image at least; of several factors, images are drawn without regard to
            them.
        epochs: Passes over the labeled images. By default 20, or as many as make 500 steps.
        batch_size: Images per step, or all labeled ones if they are fewer.
        lr: Learning rate of the backbone per 256 images. By default VICReg's on ImageNet: 0.03
            with up to 1 % of the labels, 0.01 with more.
        head_lr: Learning rate of the classifier per 256 images. By default VICReg's: 0.08 with up
            to 1 % of the labels, 0.1 with more.
        seed: Seed of which images are labeled, of their order and crops, and of the classifier.
        precision: Number format. ``bf16-mixed`` is PyTorch's autocast.
    """

    labels: tuple[float, ...] | float | str = "0.01,0.1,1"
    epochs: float | None = None
    batch_size: int = 256
    lr: float | None = None
    head_lr: float | None = None
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    def __post_init__(self) -> None:
        require_field_types(self, "finetune.")
        try:
            valid = bool(self.shares) and all(0 < share <= 1 for share in self.shares)
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(
                "finetune.labels must be one or more shares in (0, 1], as 0.01,0.1,1, got"
                f" {self.labels!r}"
            )
        for name in ("epochs", "lr", "head_lr"):
            if getattr(self, name) is not None:
                require_positive(f"finetune.{name}", getattr(self, name))
        _at_least(self, 2, "finetune.batch_size")
        require_integer("finetune.seed", self.seed, 0, _LARGEST_SEED)

    @property
    def shares(self) -> tuple[float, ...]:
        """Those of ``labels``, each once."""
        return _each_once(self.labels, float)


@dataclass(frozen=True)
class WeightsConfig:
    """Which network a file of weights belongs to that does not say so itself.

    Attributes:
        name: A timm model. ResNets of torchvision have timm's names.
        small_images: For ResNets: a 3x3 stem without max-pool.
        timm_args: Further arguments of ``timm.create_model``.
    """

    name: str | None = None
    small_images: bool = False
    timm_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_field_types(self, "model.")


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation apart from training. Those of a run are its defaults.

    Attributes:
        augment: What is done to a view; the defaults depend on the kind of data.
        measure: What is measured, one or more of ``probes``, ``finetune``, ``augmentations``, as
            ``probes,finetune``. Probes are k-NN and a linear classifier on frozen features;
            ``augmentations``, which needs no labels, measures what features know of how views were
            made.
        reference: Whether the network before training is measured, too.
        accelerator: Where to compute.
    """

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentationRecipe = _OF_THE_DATA
    model: WeightsConfig = field(default_factory=WeightsConfig)
    measure: tuple[str, ...] | str = "probes"
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    reference: bool = True
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        require_field_types(self)
        _resolve_augmentation(self)
        if not self.measured or not set(self.measured) <= set(MEASUREMENTS):
            hint = did_you_mean(
                name for each in self.measured for name in similar(each, MEASUREMENTS)
            )
            raise ValueError(
                f"measure must be one or more of {', '.join(MEASUREMENTS)}, got"
                f" {self.measure!r}{hint}"
            )

    @property
    def measured(self) -> tuple[str, ...]:
        """Those of ``measure``, each once."""
        return _each_once(self.measure, str)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as YAML and JSON hold them."""
        return _plain(dataclasses.asdict(self))


# Whose options are settings: the methods that `mast_ext.methods` registers.
_METHODS = tuple(sorted(METHODS))


def _with_options_of_methods(cls: type[Config]) -> type[Config]:
    """Adds fields to a class, after ``model``: the options of every method under its name."""
    annotations = {}
    for name, kind in cls.__annotations__.items():
        annotations[name] = kind
        if name == "model":
            annotations |= {method: METHODS[method].Options for method in _METHODS}
    cls.__annotations__ = annotations
    for name in _METHODS:
        if hasattr(cls, name):
            raise ValueError(f"a method may not be called {name!r}: settings have that name")
        setattr(cls, name, field(default_factory=METHODS[name].Options))
    return cls


@dataclass(frozen=True)
@_with_options_of_methods
class PretrainConfig:
    """The run.

    This is everything that determines it. The options of every method are a field of its name.

    Attributes:
        method: What to train. Each has options of its own under its name.
        baseline: A method (without EquiMod or hard views) to train beside it with the same number
            of image forwards, those of hard view selection counted, too; ``none``; or ``auto``: on
            ``shapes`` what the method is to improve on, which is the method itself for one with
            EquiMod or hard views and ``vicreg`` for ``mast``, else none.
        seed: Seed of weights, shuffling and augmentations.
        out: New directory of the run. By default ``runs/<method>-<data>-<number>``.
        augment: What is done to a view; the defaults depend on the kind of data.
        equimod: EquiMod goes around the method when its weight is above 0.
        hard_views: Hard views are selected when their number is above 0.
    """

    method: str = "mast"
    baseline: str = "auto"
    seed: int = 0
    out: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentationRecipe = _OF_THE_DATA
    model: ModelConfig = field(default_factory=ModelConfig)
    equimod: EquiModOptions = field(default_factory=EquiModOptions)
    hard_views: HardViewOptions = field(default_factory=HardViewOptions)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        require_field_types(self)
        _resolve_augmentation(self)
        if self.method not in _METHODS:
            known, hint = ", ".join(_METHODS), did_you_mean(similar(self.method, _METHODS))
            raise ValueError(f"method must be one of {known}, got {self.method!r}{hint}")
        baselines = ("auto", "none", *_METHODS)
        if self.baseline not in baselines:
            raise ValueError(
                f"baseline must be one of {', '.join(baselines)}, got {self.baseline!r}"
                + did_you_mean(similar(self.baseline, baselines))
            )
        require_integer("seed", self.seed, 0, _LARGEST_SEED)
        for name in _METHODS:
            complete = METHODS[name].complete(self.options(name), self.train.epochs)
            object.__setattr__(self, name, complete)

    def options(self, method: str) -> Any:
        """The settings of one method."""
        return getattr(self, method)

    def lasting(self, epochs: float) -> "PretrainConfig":
        """The same settings for other epochs, with the defaults that follow from their number."""
        following = {
            name: dataclasses.replace(self.options(name), epochs=None)
            for name in _METHODS
            if self._follows_epochs(name)
        }
        train = dataclasses.replace(self.train, epochs=epochs)
        return dataclasses.replace(self, train=train, **following)

    def _follows_epochs(self, method: str) -> bool:
        """Whether the method's options count by the run's epochs, as they do by default."""
        return getattr(self.options(method), "epochs", None) == self.train.epochs

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as YAML and checkpoints hold them.

        Paths of data and weights are absolute, so that the run can be used from any working
        directory.
        """
        values = _plain(dataclasses.asdict(self))
        values["data"]["path"] = _absolute(self.data.path)
        for name in _METHODS:
            # Left out, so that it follows from the epochs of any run that takes these settings.
            if self._follows_epochs(name):
                values[name]["epochs"] = None
        if self.model.weights:
            values["model"]["weights"] = str(Path(os.getcwd(), self.model.weights))
        return values


def _absolute(path: str | None) -> str | None:
    """A path, or a pattern of paths, from the root of the file system; a URL as it is."""
    if path is None or "://" in path:
        return path
    # A pattern that begins with a directory's name may not take its brackets for a pattern, too.
    pattern = glob.has_magic(path) and not Path(path).exists()
    here = glob.escape(os.getcwd()) if pattern else os.getcwd()
    return str(Path(here, path))  # keeps "..", which may follow a link


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _each_once(given: Any, kind: Callable[[Any], Item]) -> tuple[Item, ...]:
    """One item or several, without repetitions; a string holds several, separated by commas."""
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",")]
    listed = given if isinstance(given, (list, tuple)) else [given]
    return tuple(dict.fromkeys(kind(each) for each in listed))


def _at_least(config: Any, low: int, *names: str) -> None:
    """Checks numbers that are not None."""
    for name in names:
        value = getattr(config, name.rpartition(".")[2])
        if value is not None and not value >= low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
