"""Datasets: what the discriminator is shown as real.

A set of images lives as one uint8 tensor on the device and is read as an endless stream that the clock (images shown to
D so far) indexes; a known density is drawn from instead, and knows its exact log-density; a point mass has none. All
keep one contract, `Dataset`, so that training never asks which it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gantrain.console import one_line
from gantrain.data import folder, mixtures, published
from gantrain.data.images import Images, Labels, Splits, divided, separate, squared
from gantrain.data.mixtures import Density, Mixture, PointMass
from gantrain.errors import ConfigError, one_of

if TYPE_CHECKING:
    import torch

__all__ = ["DATASETS", "Dataset", "Density", "Images", "Labels", "PointMass", "is_endless", "load", "shapes"]


class Dataset(Protocol):
    """What training, figures and metrics may ask of any dataset."""

    name: str
    label: str  # the name to show, e.g. `cifar10-jpeg` for a folder of them
    shape: tuple[int, ...]  # (C, H, W), or (d,) for a density
    size: int | None  # training examples; None where they are drawn without end
    has_held_out: bool  # False where `held_out` can only repeat training examples
    fingerprint: str  # a short digest of the content, independent of file names and of order on disk
    skipped: int  # damaged files left out under on_bad=skip

    def batch(self, clock: int, batch_size: int) -> torch.Tensor:
        """Training examples clock … clock + B − 1 of the endless stream: float32 `[B, *shape]`, pixels in [0, 1]."""

    def held_out(self, count: int) -> torch.Tensor:
        """At most `count` examples kept from training, always the same: float32 `[min(count, available), *shape]`."""


class ImageSource(NamedTuple):
    """How a set of images is read, and what is natural for it."""

    read: Callable[[Path, int, str], Splits]  # (folder, size in pixels, on_bad) → splits
    size: int
    flip: bool
    channels: tuple[int, ...] = (3,)  # what the files may turn out to hold
    total: int = 0  # images of both splits; 0 where only the files tell
    stacks: str | None = None  # the set whose images are the channels of this one's


IMAGES: dict[str, ImageSource] = {
    "digits": ImageSource(published.digits, size=8, flip=False, channels=(1,), total=1_797),
    "mnist": ImageSource(published.mnist, size=28, flip=False, channels=(1,), total=70_000),
    "fashion_mnist": ImageSource(published.fashion_mnist, size=28, flip=False, channels=(1,), total=70_000),
    "stacked_mnist": ImageSource(published.stacked_mnist, size=28, flip=False, stacks="mnist", total=154_000),
    "cifar10": ImageSource(published.cifar10, size=32, flip=True, total=60_000),
    "cifar100": ImageSource(published.cifar100, size=32, flip=True, total=60_000),
    "svhn": ImageSource(published.svhn, size=32, flip=False, total=99_289),
    "stl10": ImageSource(published.stl10, size=48, flip=True, total=113_000),
    "celeba": ImageSource(published.celeba, size=64, flip=True, total=182_732),
    "folder": ImageSource(folder.read, size=32, flip=True, channels=(3, 1)),
}

DENSITIES: dict[str, Callable[..., Mixture]] = {
    "mixture1d": mixtures.mixture1d,
    "ring": mixtures.ring,
    "grid25": mixtures.grid25,
}

POINT_MASSES = {"dirac": 1}  # name → dimensions

DATASETS: dict[str, ImageSource | Callable[..., Mixture] | int] = {**IMAGES, **DENSITIES, **POINT_MASSES}


def load(
    name: str,
    *,
    root: str | Path = "data",
    path: str | Path | None = None,
    size: int | None = None,
    held_out: int | None = None,
    on_bad: str = "error",
    flip: bool | None = None,
    weights: Sequence[float] | None = None,
    means: Sequence[float] | None = None,
    stds: Sequence[float] | None = None,
    label: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Images | Density | PointMass:
    """The dataset `name`, on `device`; what is None takes the dataset's natural value.

    - `root`: where published datasets lie and are downloaded to.
    - `path`: a folder of images, or a .zip of them, for `folder`.
    - `size`: side of the square images in pixels.
    - `held_out`: how many examples to keep from training, 0 for none. By default the test split, or where there is none
      min(10 %, 1,000) images chosen by hash of content, the same for every seed.
    - `on_bad`: `error` or `skip`, for a damaged file among images.
    - `flip`: mirror half of the training images, at random.
    - `weights`, `means`, `stds`: the components of `mixture1d`.
    - `label`: the name to show; by default `name`.

    Raises ConfigError for a value that no dataset could have, DataError for data that are missing or damaged.
    """
    check(name, path=path, size=size, held_out=held_out, on_bad=on_bad, weights=weights, means=means, stds=stds)
    label = one_line(label or name)
    if name in DENSITIES:
        return Density(name, label, mixture(name, weights=weights, means=means, stds=stds), seed=seed, device=device)
    if name in POINT_MASSES:
        return PointMass(name, label, POINT_MASSES[name], device=device)
    source = IMAGES[name]
    size = source.size if size is None else size
    splits = source.read(Path(root if path is None else path).expanduser(), size, on_bad)
    chosen = separate(splits, held_out)
    train, held = divided(splits.train, splits.test, chosen)
    found = splits.labels  # the readers keep no pixels, as `splits` would

    def labels() -> Labels:
        assert found is not None
        whole = found()
        return Labels(whole.classes, *divided(whole.train, whole.test, chosen))

    return Images(
        name,
        label,
        squared(train, size).to(device),
        squared(held, size).to(device),
        flip=source.flip if flip is None else flip,
        skipped=splits.skipped,
        seed=seed,
        is_test=splits.test is not None,
        read_labels=labels if found else None,
    )


def check(
    name: str,
    *,
    path: str | Path | None = None,
    size: int | None = None,
    held_out: int | None = None,
    on_bad: str = "error",
    weights: Sequence[float] | None = None,
    means: Sequence[float] | None = None,
    stds: Sequence[float] | None = None,
    **_: Any,
) -> None:
    """Raise ConfigError for arguments of `load` that can be seen to be wrong before any data is read."""
    if name not in DATASETS:
        raise ConfigError(one_of("dataset", name, DATASETS))
    if on_bad not in ("error", "skip"):
        raise ConfigError(one_of("dataset.on_bad", on_bad, ("error", "skip")))
    if name == "folder" and not str(path or ""):
        raise ConfigError("dataset=folder needs dataset.path=FOLDER, a folder of images or a .zip of them")
    if name != "folder" and path is not None:
        raise ConfigError(f"dataset.path={path} is for dataset=folder; dataset={name} is looked for under dataset.root")
    if size is not None and size < 1:
        raise ConfigError(f"dataset.size={size} must be at least 1 pixel")
    if held_out is not None and held_out < 0:
        raise ConfigError(f"dataset.held_out={held_out} must be 0 (none) or more")
    for key, value in {"weights": weights, "means": means, "stds": stds}.items():
        if value is not None and name != "mixture1d":
            raise ConfigError(f"dataset.{key} is for dataset=mixture1d; dataset={name} has its own components")
    shapes(name, size=size, weights=weights, means=means, stds=stds)


def shapes(name: str, *, size: int | None = None, **settings: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes that examples may have, known before any is read: a folder's images may be in colour or grey.

    Takes the arguments of `load`. Raises ConfigError for components that are no mixture.
    """
    if name in DENSITIES:
        return ((len(mixture(name, **settings).means[0]),),)
    if name in POINT_MASSES:
        return ((POINT_MASSES[name],),)
    side = size or IMAGES[name].size
    return tuple((channels, side, side) for channels in IMAGES[name].channels)


def pixel_bytes(name: str, *, path: str | Path | None = None, **settings: Any) -> int:
    """What the uint8 pixels of both splits take at most, known before any is read; 0 where examples are drawn.

    Takes the arguments of `load`. Raises DataError for a folder that cannot be read.
    """
    if is_endless(name):
        return 0
    count = IMAGES[name].total or len(folder.image_files(Path(path or "").expanduser()))
    return count * max(math.prod(shape) for shape in shapes(name, size=settings.get("size")))


def is_endless(name: str) -> bool:
    """Whether the examples of a dataset are drawn without end, so that there are no epochs."""
    return name not in IMAGES


def judged_as(name: str) -> str:
    """The dataset whose classifier sees the images of `name`: of stacks, that of their channels."""
    return (IMAGES[name].stacks if name in IMAGES else None) or name


def mixture(name: str, **settings: Any) -> Mixture:
    """The components of a density, from those of `load`'s arguments that are for them."""
    given = {key: settings[key] for key in ("weights", "means", "stds") if settings.get(key) is not None}
    return DENSITIES[name](**given)
