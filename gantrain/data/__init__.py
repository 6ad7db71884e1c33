"""Datasets: the real examples that the discriminator sees.

A set of images lives as one uint8 tensor, on the device or in a file (`memory_map.py`), and is read as an endless
stream that the clock (images shown to D so far) indexes (`images.py`, read first); draws from a known density know
their exact log-density (`mixtures.py`). `published.py` reads the sets of the literature, `folder.py` and `decoding.py`
image files. All datasets fulfil one contract, `Dataset`, so that training never asks which one it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gantrain.console import one_line
from gantrain.data import arrays, decoding, folder, labels, levels, memory_map, mixtures, published
from gantrain.data.images import Batch, Images, Labels, Points, SplitIndices, Splits, choose_held_out
from gantrain.data.memory_map import LoadedSplits
from gantrain.data.mixtures import Density, Mixture, PointMass
from gantrain.distributed import WHOLE, Part
from gantrain.errors import ConfigError
from gantrain.files import expand_home
from gantrain.ranges import Choice, Numbers, accepted_by_field, setting

if TYPE_CHECKING:
    import torch

__all__ = [
    "DATASETS",
    "Batch",
    "Dataset",
    "DatasetSettings",
    "Density",
    "Images",
    "Labels",
    "Mixture",
    "PointMass",
    "Points",
    "load",
]


class Dataset(Protocol):
    """The attributes and methods that every dataset has."""

    name: str
    label: str  # the name in reports, e.g. `cifar10-jpeg` for a folder of them
    shape: tuple[int, ...]  # (C, H, W), or (d,) for a density
    size: int | None  # training examples; None if they are drawn without end
    has_held_out: bool  # False if `held_out` can only repeat training examples
    skipped: int  # damaged files left out under on_bad=skip

    @property
    def fingerprint(self) -> str:
        """A short digest of the content, independent of file names and of order on disk."""

    def batch(self, clock: int, batch_size: int, part: Part = WHOLE) -> Batch:
        """Training examples clock … clock + B − 1 of the endless stream: float32 `[B, *shape]`, pixels in [0, 1].

        Of these only the rows that belong to `part`, `[B / ranks, *shape]`.
        """

    def held_out(self, count: int) -> torch.Tensor:
        """Return at most `count` held-out examples, always the same: float32 `[min(count, available), *shape]`."""


class ImageSource(NamedTuple):
    """A set of images: its reader and its natural settings."""

    read: Callable[..., Splits]  # (folder, size in pixels, on_bad, **options) → splits
    size: int
    flip: bool = False
    channels: tuple[int, ...] = (3,)  # the numbers of channels that are possible before the files are read
    stacks: str | None = None  # the dataset whose images are the channels of this one's
    options: Mapping[str, str] = MappingProxyType({})  # the reader's further arguments, and the settings that they are
    # Returns how many images there are at most, and their files. The reader then takes `allocate`, and reads by parts.
    survey: Callable[[Path], tuple[int, list[Path]]] | None = None


IN_PATHS = ("folder", "array")  # looked for at dataset.path
FITTING = {"fit": "fit", "limits": "range"}
IMAGES: dict[str, ImageSource] = {
    "digits": ImageSource(published.read_digits, size=8, channels=(1,)),
    "mnist": ImageSource(partial(published.read_torchvision, "mnist"), size=28, channels=(1,)),
    "fashion_mnist": ImageSource(partial(published.read_torchvision, "fashion_mnist"), size=28, channels=(1,)),
    "stacked_mnist": ImageSource(published.read_stacked_mnist, size=28, stacks="mnist"),
    "cifar10": ImageSource(partial(published.read_torchvision, "cifar10"), size=32, flip=True),
    "cifar100": ImageSource(partial(published.read_torchvision, "cifar100"), size=32, flip=True),
    "svhn": ImageSource(partial(published.read_torchvision, "svhn"), size=32),
    "stl10": ImageSource(partial(published.read_torchvision, "stl10"), size=48, flip=True),
    "celeba": ImageSource(published.read_celeba, size=64, flip=True, survey=published.survey_celeba),
    "folder": ImageSource(folder.read, 32, True, (3, 1), options={"labels": "labels", **FITTING}, survey=folder.survey),
    "array": ImageSource(arrays.read, 32, True, (3, 1), options=FITTING, survey=arrays.survey),
}

DENSITIES: dict[str, Callable[..., Mixture]] = {
    "mixture1d": mixtures.mixture1d,
    "ring": mixtures.ring,
    "grid25": mixtures.grid25,
}

POINT_MASSES = {"dirac": 1}  # name → dimensions

DATASETS: dict[str, ImageSource | Callable[..., Mixture] | int] = {**IMAGES, **DENSITIES, **POINT_MASSES}


@dataclass(frozen=True)
class DatasetSettings:
    """The choice of a dataset and of how it is read; None takes the dataset's natural value.

    - `root`: the folder in which published datasets lie and to which they are downloaded.
    - `path`: a folder of images, or a .zip of them, for `folder`; a .npy, .npz or .csv file for `array`.
    - `size`: side of the square images in pixels.
    - `held_out`: how many examples to keep from training, 0 for none. By default the test split, or without one
      min(10 %, 1,000) images chosen by a hash of their content, the same for every seed.
    - `on_bad`: `error` or `skip`, for a damaged file among images.
    - `flip`: mirror half of the training images, at random.
    - `labels`: where the classes of a folder's images come from, one of `gantrain.data.labels.KINDS`.
    - `fit`: how an image that is not square becomes one, one of `gantrain.data.decoding.FITS`.
    - `range`: the values in image files that become black and white, or `auto` for the darkest and brightest of all; by
      default the whole range of the files' type.
    - `resident`: where images are kept, one of `gantrain.data.memory_map.RESIDENCES`. What is trained is the same.
    - `weights`, `means`, `stds`: the components of `mixture1d`.
    - `label`: the name in reports; by default `name`.

    Raises ConfigError for a value that no dataset could have; no data are read.
    """

    name: str
    _: KW_ONLY
    root: str | Path = "data"
    path: str | Path | None = None
    size: int | None = setting(None, Numbers(whole=True, at_least=1, also=(None,)))
    held_out: int | None = setting(None, Numbers(whole=True, at_least=0, also=(None,)))
    on_bad: str = setting("error", Choice(("error", "skip")))
    flip: bool | None = None
    labels: str = setting(labels.AUTO, Choice(labels.KINDS))
    fit: str = setting(decoding.CROP, Choice(decoding.FITS))
    range: Sequence[float] | str | None = None
    resident: str = setting(memory_map.AUTO, Choice(memory_map.RESIDENCES))
    weights: Sequence[float] | None = None
    means: Sequence[float] | None = None
    stds: Sequence[float] | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        Choice(tuple(DATASETS)).check("dataset", self.name)
        for key, accepted in accepted_by_field(type(self)).items():
            if accepted is not None:
                accepted.check(f"dataset.{key}", getattr(self, key))
        if self.resident != memory_map.AUTO and is_endless(self.name):
            raise ConfigError(f"dataset.resident={self.resident} is for images; dataset={self.name} is drawn as needed")
        self._check_files()
        if self.name in IN_PATHS and not str(self.path or ""):
            what = "FOLDER, a folder of images or a .zip of them" if self.name == "folder" else "X.npy, X.npz or X.csv"
            raise ConfigError(f"dataset={self.name} needs dataset.path={what}")
        if self.name not in IN_PATHS and self.path is not None:
            raise ConfigError(
                f"dataset.path={self.path} is for dataset=folder or array; dataset={self.name} is looked for under "
                "dataset.root"
            )
        if self._components and self.name != "mixture1d":
            key = next(iter(self._components))
            raise ConfigError(f"dataset.{key} is for dataset=mixture1d; dataset={self.name} has its own components")
        if self.name in DENSITIES:
            mixture = self.build_mixture()
            if self.weights is not None and abs(math.fsum(self.weights) - 1) > 1e-6:
                shares = ",".join(f"{share:g}" for share in mixture.weights)
                raise ConfigError(
                    f"dataset.weights={list(self.weights)} sum to {math.fsum(self.weights):g} and must sum to one, "
                    f"as in dataset.weights=[{shares}]"
                )

    def _check_files(self) -> None:
        """Raise ConfigError for a wrong range of image files, or for settings of them where data are none."""
        if not levels.is_range(self.range):
            raise ConfigError(f"dataset.range={self.range} must be auto, or [BLACK,WHITE] with BLACK below WHITE")
        for key, default in (("labels", labels.AUTO), ("fit", decoding.CROP), ("range", None)):
            takers = [name for name in IMAGES if key in IMAGES[name].options.values()]
            if self.name not in takers and (value := getattr(self, key)) != default:
                given = f"dataset.{key}={value}"
                raise ConfigError(f"{given} is for dataset={' or '.join(takers)}, not dataset={self.name}")

    @property
    def _components(self) -> dict[str, Sequence[float]]:
        given = {"weights": self.weights, "means": self.means, "stds": self.stds}
        return {key: values for key, values in given.items() if values is not None}

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes that an example may have, known before any is read: a folder's images may be in colour or grey.

        Of an array the shape is read, and may raise DataError.
        """
        if self.name in DENSITIES:
            return ((self.build_mixture().dimensions,),)
        if self.name in POINT_MASSES:
            return ((POINT_MASSES[self.name],),)
        if self.name == "array" and (dimensions := arrays.find_dimensions(expand_home(str(self.path)))):
            return ((dimensions,),)
        source = IMAGES[self.name]
        side = self.size or source.size
        return tuple((channels, side, side) for channels in source.channels)

    def build_mixture(self) -> Mixture:
        """Return the mixture that a density draws from. Raises ConfigError for components that are no mixture."""
        return DENSITIES[self.name](**self._components)


AnyDataset = Images | Points | Density | PointMass


def load(name: str, *, seed: int = 0, device: torch.device | str = "cpu", **options: Any) -> AnyDataset:
    """Load the dataset `name` onto `device`; `options` are those of `DatasetSettings`. Raises as `load_dataset`."""
    return load_dataset(DatasetSettings(name, **options), seed=seed, device=device)


def load_dataset(settings: DatasetSettings, *, seed: int = 0, device: torch.device | str = "cpu") -> AnyDataset:
    """Load a dataset onto `device`; `seed` decides the order of images, or the draws from a density.

    Raises DataError for data that are missing or damaged.
    """
    name, label = settings.name, one_line(settings.label or settings.name)
    if name in DENSITIES:
        return Density(name, label, settings.build_mixture(), seed=seed, device=device)
    if name in POINT_MASSES:
        return PointMass(name, label, POINT_MASSES[name], device=device)
    import torch

    device, source = torch.device(device), IMAGES[name]
    kept, residence = _read_images(settings, device)
    train, held = (part.to(device) if residence == memory_map.DEVICE else part for part in kept[:2])
    is_apart = residence == memory_map.MEMORY_MAP or train.device.type != device.type
    options: dict[str, Any] = {"seed": seed, "device": device if is_apart else None}
    if train.dim() == 2:
        return Points(name, label, train, held, **options)
    images = Images(
        name,
        label,
        train,
        held,
        labels=kept.labels,
        is_test=kept.is_test,
        flip=source.flip if settings.flip is None else settings.flip,
        skipped=kept.skipped,
        **options,
    )
    if kept.fingerprint is not None:
        images.fingerprint = kept.fingerprint
    return images


def _read_images(settings: DatasetSettings, device: torch.device) -> tuple[LoadedSplits, str]:
    """Return the images or points, on the CPU, and where they are to be kept. Raises as `load_dataset`."""
    source, path = IMAGES[settings.name], expand_home(settings.path or settings.root)
    size = settings.size or source.size
    options: dict[str, Any] = {argument: getattr(settings, key) for argument, key in source.options.items()}
    count, files = source.survey(path) if source.survey else (0, [])
    residence = memory_map.choose_residence(settings.resident, count * max(source.channels) * size**2, device)

    def read(**more: Any) -> tuple[Splits, SplitIndices]:
        splits = source.read(path, size, settings.on_bad, **options, **more)
        return splits, choose_held_out(splits, settings.held_out)

    if residence == memory_map.MEMORY_MAP:
        if source.survey and len(settings.shapes[0]) == 1:
            raise ConfigError(f"dataset.resident={residence} is for images, and {path} holds points")
        key = (settings.name, path.resolve(), size, settings.held_out, settings.on_bad, *options.values())
        file = memory_map.MemoryMap(settings.name, key, files)
        return file.obtain(partial(read, allocate=file.allocate) if source.survey else read, size), residence
    return LoadedSplits.from_splits(*read(), size), residence


def is_endless(name: str) -> bool:
    """Return whether the examples of a dataset are drawn without end, so that there are no epochs."""
    return name not in IMAGES
