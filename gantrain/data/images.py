"""Images as one uint8 tensor on the device, read as an endless stream.

Epoch e shows every training image once, in a permutation that (seed, e) alone decides; epochs follow each other without
a gap. Position c of the stream is therefore known without having read positions 0 … c − 1, and a run that resumes at
clock c goes on with the images it would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain.data.batch import Batch
from gantrain.errors import DataError
from gantrain.seeding import stream_generator

if TYPE_CHECKING:
    import torch


class Labels(NamedTuple):
    """The class of each image, a number below len(classes), or −1 where it is not known: int64 `[N]` on the CPU."""

    classes: tuple[str, ...]
    train: torch.Tensor
    test: torch.Tensor | None = None


class Splits(NamedTuple):
    """Images as a reader found them, uint8 `[N, C, H, W]` on the CPU, and their labels if they have any."""

    train: torch.Tensor
    test: torch.Tensor | None = None
    labels: Labels | None = None
    skipped: int = 0  # damaged files that were left out


class Examples:
    """Examples that are stored on the device, read as an endless stream.

    `train` and `held` are `[N, *shape]` on the device on which batches are made; `held` may be empty, and is the test
    split if `is_test`.
    """

    def __init__(
        self,
        name: str,
        label: str,
        train: torch.Tensor,
        held: torch.Tensor,
        *,
        is_test: bool = False,
        skipped: int = 0,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.label = label
        self.shape: tuple[int, ...] = tuple(train.shape[1:])
        self.size: int | None = len(train)
        self.has_held_out = len(held) > 0
        self.fingerprint = _fingerprint(train, held)
        self.skipped = skipped
        self.split = "training" if not self.has_held_out else "test" if is_test else "held out"  # what held_out gives
        self.train = train
        self.held = held if self.has_held_out else train
        self._seed = seed
        self._orders: dict[int, torch.Tensor] = {}

    def batch(self, clock: int, batch_size: int) -> Batch:
        """Examples clock … clock + B − 1 of the stream: `[B, *shape]`."""
        return Batch(self.train[self._indices(clock, batch_size)])

    def held_out(self, count: int) -> torch.Tensor:
        """Return the first `count` held-out examples, or training examples if none are held out."""
        return self.held[:count]

    def _indices(self, clock: int, batch_size: int) -> torch.Tensor:
        """Indices of the training examples at positions clock … clock + B − 1 of the stream: int64 `[B]`."""
        import torch

        end = clock + batch_size
        count = len(self.train)
        epochs = range(clock // count, (end - 1) // count + 1)
        self._orders = {epoch: self._order(epoch) for epoch in epochs}
        starts = {epoch: epoch * count for epoch in epochs}
        parts = [self._orders[e][max(clock - starts[e], 0) : end - starts[e]] for e in epochs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _order(self, epoch: int) -> torch.Tensor:
        """The permutation of one epoch, int64 `[N]` on the device; the ones of the last batch are kept."""
        import torch

        if epoch in self._orders:
            return self._orders[epoch]
        generator = stream_generator(self._seed, "permutation", epoch)
        return torch.randperm(len(self.train), generator=generator).to(self.train.device)


class Points(Examples):
    """Points, float32 `[N, d]`; the contract is `gantrain.data.Dataset`."""


class Images(Examples):
    """A set of images; the contract is `gantrain.data.Dataset`.

    `train` and `held` are uint8 `[N, C, H, W]`.
    """

    def __init__(
        self,
        name: str,
        label: str,
        train: torch.Tensor,
        held: torch.Tensor,
        *,
        labels: Labels | None = None,
        flip: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(name, label, train, held, **options)
        self.flip = flip
        self._labels = labels

    def batch(self, clock: int, batch_size: int) -> Batch:
        """Images clock … clock + B − 1 of the stream: float32 `[B, C, H, W]` in [0, 1], half of them mirrored."""
        images = pixels(self.train[self._indices(clock, batch_size)])
        return Batch(self._mirror_half(images, clock) if self.flip else images)

    def held_out(self, count: int) -> torch.Tensor:
        """Return the first `count` held-out images, or training images if none are held out: `[≤ count, C, H, W]`."""
        return pixels(self.held[:count])

    def labels(self) -> Labels | None:
        """Return the labels of `train` and `held`, in their order; None if the dataset has none."""
        if self._labels is None or self.has_held_out:
            return self._labels
        return self._labels._replace(test=self._labels.train)

    def _mirror_half(self, images: torch.Tensor, clock: int) -> torch.Tensor:
        import torch

        generator = stream_generator(self._seed, "flip", clock, device=images.device)
        size = (len(images), 1, 1, 1)
        coins = torch.randint(2, size, dtype=torch.bool, generator=generator, device=images.device)
        return torch.where(coins, images.flip(-1), images)


def choose_held_out(splits: Splits, held_out: int | None) -> tuple[slice | Sequence[int], Sequence[int]]:
    """Return the indices of the images for training, and those of the held-out images in the test split.

    Held-out images are ordered by a hash of their content, so that the first k of them are a fair sample even where
    the files are sorted by class. Without a test split the first `held_out` training images in that order are held
    out, by default min(10 %, 1,000), and the others are trained on in that order: file names and the order on disk
    have no influence.

    Raises DataError if nothing would be left to train on.
    """
    if splits.test is not None:
        return slice(None), order_by_content(splits.test)[:held_out]
    count = min(len(splits.train) // 10, 1000) if held_out is None else held_out
    if count >= len(splits.train):
        raise DataError(f"dataset.held_out={count} leaves no training image of {len(splits.train)}; lower it")
    order = order_by_content(splits.train)
    return order[count:], order[:count]


def divide(
    train: torch.Tensor, test: torch.Tensor | None, chosen: tuple[slice | Sequence[int], Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (training, held-out) images, or their labels, that `choose_held_out` chose."""
    return train[chosen[0]], (train if test is None else test)[chosen[1]]


def check_distinct(images: torch.Tensor, where: Path, notes: Sequence[str]) -> None:
    """Raise DataError, with `notes` on why it may be, for several images that are all the same."""
    if len(images) > 1 and bool((images == images[:1]).all()):
        raise DataError("\n".join([f"the {len(images):,} images in {where} are all the same", *notes]))


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize uint8 images to `[N, C, size, size]`, bicubic and antialiased; unchanged at that size."""
    import torch
    from torch.nn.functional import interpolate

    if tuple(images.shape[-2:]) == (size, size) or len(images) == 0:
        return images
    # In parts: float32 copies of a large set would not fit in memory.
    parts = [
        interpolate(part.float(), (size, size), mode="bicubic", antialias=True).round().clamp(0, 255).byte()
        for part in images.split(1024)
    ]
    return torch.cat(parts)


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 0 … 255 to float32 in [0, 1]."""
    return images / 255


def order_by_content(images: torch.Tensor) -> list[int]:
    """Return the indices of the images, sorted by a hash of their pixels."""
    keys = [hashlib.blake2b(image, digest_size=16).digest() for image in images.contiguous().numpy()]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _fingerprint(*splits: torch.Tensor) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for images in splits:
        digest.update(repr(tuple(images.shape)).encode())
        digest.update(images.contiguous().cpu().numpy().data)
    return digest.hexdigest()
