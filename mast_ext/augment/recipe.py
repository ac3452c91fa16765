"""What may be done to a view: the augmentation recipe.

The recipe is a frozen dataclass that checks every value when it is made, because renderers accept
nonsense (a negative brightness, an empty crop) silently. It says nothing about how parameters are
drawn (`sampler`), which views exist (`policies`) or how pixels are made (`torchvision`).
"""

import math
from dataclasses import dataclass, replace

from mast_ext.checks import (
    OptionError,
    require_field_types,
    require_integer,
    require_number,
    require_numbers,
    require_range,
)

COLOR_CHANGES = ("saturation", "hue", "grayscale")
"""Settings that only images of three channels (RGB) have a use for."""

AUGMENTATIONS = ("crop", "flip", "color", "grayscale", "blur", "solarize")
"""Every augmentation the schema knows, in the order in which a renderer applies them."""

MOST_SIGMA = 1000.0  # kMostSigma of csrc/kernels/photometry


@dataclass(frozen=True)
class AugmentationRecipe:
    """Probabilities, ranges and normalization of one kind of view.

    Strengths follow torchvision: a brightness strength ``s`` means a factor drawn from
    ``[max(0, 1 - s), 1 + s]``, a hue strength ``h`` a shift from ``[-h, h]`` turns. Operations are
    applied in the order crop, flip, brightness, contrast, saturation, hue, grayscale, blur,
    solarize, normalize.

    Attributes:
        size: Side of the square view in pixels, at least 1.
        crop_scale: Range of the crop's area relative to the image's, in ``(0, 1]``;
            ``(1, 1)`` switches the crop off (the central square is used).
        crop_ratio: Range of the crop's aspect ratio (width / height), positive.
        flip: Probability of a horizontal flip.
        jitter: Probability that brightness, contrast, saturation and hue are changed.
        brightness: Strength of the brightness change, at least 0.
        contrast: Strength of the contrast change, at least 0.
        saturation: Strength of the saturation change, at least 0.
        hue: Strength of the hue change in turns; lies in ``[0, 0.5]``.
        grayscale: Probability of conversion to gray.
        blur: Probability of a Gaussian blur.
        blur_sigma: Range of the blur's standard deviation in pixels of the view, positive and at
            most 1000.
        solarize: Probability of solarization (pixels at or above the threshold are inverted).
        solarize_threshold: Level from which pixels are inverted, an integer in ``[0, 255]``; of
            images of 16 bits 257 times that.
        mean: Mean of each channel, of pixels in ``[0, 1]`` (default: ImageNet's). So many channels
            the images have.
        std: Standard deviation of each channel, positive (default: ImageNet's).
        views: How many views of this kind a composed policy makes, at least 1.

    Raises:
        TypeError: A value is not a number, or not a list or tuple of numbers.
        ValueError: A value lies outside its range, or there are too many or too few.
    """

    size: int = 32
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: int = 128
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    views: int = 2

    def __post_init__(self) -> None:
        require_field_types(self)
        require_integer("size", self.size, 1)
        require_integer("views", self.views, 1)
        require_integer("solarize_threshold", self.solarize_threshold, 0, 255)
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            require_number(name, getattr(self, name), 0, 1, expected="a probability in [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            require_number(name, getattr(self, name), 0)
        require_number(
            "hue", self.hue, 0, 0.5, expected="a strength in [0, 0.5] (turns of the color circle)"
        )
        for name, most in (("crop_scale", 1), ("crop_ratio", math.inf), ("blur_sigma", MOST_SIGMA)):
            object.__setattr__(self, name, require_range(name, getattr(self, name), most))
        for name in ("mean", "std"):
            values = require_numbers(name, getattr(self, name))
            if not values:
                raise OptionError(f"{name} must be a number for each channel, got none")
            if name == "std" and min(values) <= 0:
                raise OptionError(f"std must be positive numbers, got {values}")
            object.__setattr__(self, name, tuple(map(float, values)))
        if len(self.mean) != len(self.std):
            raise OptionError(
                f"mean and std must have a number for each channel, got {len(self.mean)} and"
                f" {len(self.std)} numbers"
            )

    @property
    def channels(self) -> int:
        """How many channels the images have that it is for: as many as ``mean`` has numbers."""
        return len(self.mean)

    @property
    def color_changes(self) -> tuple[str, ...]:
        """Settings by which it changes colors: of `COLOR_CHANGES` those that are on."""
        return tuple(name for name in COLOR_CHANGES if self.varies(name))

    def without_color(self) -> "AugmentationRecipe":
        """The recipe with those settings off, as images of other channels than RGB need it."""
        return replace(self, saturation=0.0, hue=0.0, grayscale=0.0)

    def require_colors(self) -> None:
        """Raises a ValueError if it changes colors of images that are not RGB."""
        if self.channels != 3 and self.color_changes:
            settings = ", ".join(f"{name} {getattr(self, name):g}" for name in self.color_changes)
            raise OptionError(
                f"{settings} need images of 3 channels (RGB), got mean of {self.channels}"
                f" channel{'s' * (self.channels > 1)}: set them to 0, or take"
                " recipe.without_color()"
            )

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Names of the augmentations that this recipe switches on, in order of application."""
        jitters = max(self.brightness, self.contrast, self.saturation, self.hue) > 0
        on = {
            "crop": self.crop_scale[0] < 1,
            "flip": self.flip > 0,
            "color": self.jitter > 0 and jitters,
            "grayscale": self.grayscale > 0,
            "blur": self.blur > 0,
            "solarize": self.solarize > 0,
        }
        return tuple(name for name in AUGMENTATIONS if on[name])

    def only(self, *names: str) -> "AugmentationRecipe":
        """The recipe with some of its augmentations, and without all others.

        Args:
            *names: Which stay; without any, views are the images' central squares.

        Raises:
            ValueError: There is no augmentation of one of these names.
        """
        if unknown := sorted(set(names) - set(AUGMENTATIONS)):
            raise OptionError(f"augmentations are {', '.join(AUGMENTATIONS)}, got {unknown[0]!r}")
        kept = set(names)
        return replace(
            self,
            crop_scale=self.crop_scale if "crop" in kept else (1.0, 1.0),
            flip=self.flip if "flip" in kept else 0.0,
            jitter=self.jitter if "color" in kept else 0.0,
            grayscale=self.grayscale if "grayscale" in kept else 0.0,
            blur=self.blur if "blur" in kept else 0.0,
            solarize=self.solarize if "solarize" in kept else 0.0,
        )

    def varies(self, name: str) -> bool:
        """Whether views differ by ``name``.

        Args:
            name: An augmentation, a factor of the color jitter, or ``geometry`` (crop or flip).
        """
        if name == "geometry":
            return self.varies("crop") or self.varies("flip")
        if name in ("brightness", "contrast", "saturation", "hue"):
            return self.jitter > 0 and getattr(self, name) > 0
        return name in self.augmentations

    def factor_range(self, name: str) -> tuple[float, float]:
        """Range from which a factor of the jitter is drawn, when it is applied.

        Args:
            name: ``brightness``, ``contrast``, ``saturation`` or ``hue``.
        """
        strength: float = getattr(self, name)
        return (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)
