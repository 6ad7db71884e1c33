"""Images as one uint8 tensor, read as an endless stream.

Epoch e shows every training image once, in a permutation that (seed, e) alone decides; epochs follow each other without
a gap. Position c of the stream is therefore known without having read positions 0 … c − 1, and a run that resumes at
clock c goes on with the images it would have seen. The tensor lies on the device, or in the host's memory or a file,
from where a thread reads one batch ahead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain.devices import request_rows
from gantrain.distributed import WHOLE, Part
from gantrain.errors import DataError
from gantrain.seeding import stream_generator

if TYPE_CHECKING:
    import torch

PART = 1024  # images that are copied or converted at a time, to bound the memory


SplitIndices = tuple[slice | Sequence[int], Sequence[int]]  # of `choose_held_out`


class Batch(NamedTuple):
    """Examples, float32 `[B, *shape]`, and their classes, int64 `[B]`; None where networks are given no classes."""

    images: torch.Tensor
    labels: torch.Tensor | None = None

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Return the batch with `function` applied to the images and to the labels, if there are any."""
        return Batch(function(self.images), None if self.labels is None else function(self.labels))


class Labels(NamedTuple):
    """The class of each image, a number below len(classes), or −1 where it is not known: int64 `[N]` on the CPU."""

    classes: tuple[str, ...]
    train: torch.Tensor
    test: torch.Tensor | None = None

    def divide(self, chosen: SplitIndices) -> Labels:
        """Return the labels of the training and held-out images that `choose_held_out` chose."""
        return Labels(self.classes, *divide(self.train, self.test, chosen))

    @property
    def fingerprint(self) -> str:
        """A short digest of the classes and of the labels of both splits."""
        digest = hashlib.blake2b(repr(self.classes).encode(), digest_size=8)
        for labels in (self.train, self.test):
            digest.update(b"" if labels is None else labels.numpy().data)
        return digest.hexdigest()

    def to_lists(self) -> dict[str, list[Any]]:
        """Return the labels as plain data."""
        assert self.test is not None
        return {"classes": list(self.classes), "train": self.train.tolist(), "test": self.test.tolist()}

    @classmethod
    def from_lists(cls, classes: Sequence[str], train: Sequence[int], test: Sequence[int]) -> Labels:
        """Return labels that `to_lists` made plain."""
        import torch

        return cls(tuple(classes), *(torch.tensor(part, dtype=torch.int64) for part in (train, test)))


class Splits(NamedTuple):
    """Images as a reader found them, uint8 `[N, C, H, W]` on the CPU, and their labels if they have any."""

    train: torch.Tensor
    test: torch.Tensor | None = None
    labels: Labels | None = None
    skipped: int = 0  # damaged files that were left out
    has_order: bool = True  # beside a test split, training images keep it; else they are sorted by a hash of content


class Examples:
    """Stored examples, read as an endless stream.

    `train` and `held` are `[N, *shape]`; `held` may be empty, and is the test split if `is_test`. Batches are made on
    their device, or on `device`: from host memory or a file, where they are read ahead.
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
        device: torch.device | None = None,
    ) -> None:
        self.name = name
        self.label = label
        self.shape: tuple[int, ...] = tuple(train.shape[1:])
        self.size: int | None = len(train)
        self.has_held_out = len(held) > 0
        self.skipped = skipped
        self.device = device or train.device
        self._pool = ThreadPoolExecutor(1, "read-ahead") if device else None
        self._next: dict[tuple[int, int, Part], Future[torch.Tensor]] = {}
        self._splits = train, held
        self.split = "training" if not self.has_held_out else "test" if is_test else "held out"  # what held_out gives
        self.train = train
        self.held = held if self.has_held_out else train
        self._seed = seed
        self._orders: dict[int, torch.Tensor] = {}

    @cached_property
    def fingerprint(self) -> str:
        """A short digest of the content; that of a file is known without reading it again."""
        return compute_fingerprint(*self._splits)

    def batch(self, clock: int, batch_size: int, part: Part = WHOLE) -> Batch:
        """Examples clock … clock + B − 1 of the stream, or a part of them: `[B, *shape]`."""
        return Batch(self._take(clock, batch_size, part))

    def held_out(self, count: int) -> torch.Tensor:
        """Return the first `count` held-out examples, or training examples if none are held out."""
        return self.held[:count].to(self.device)

    def _take(self, clock: int, batch_size: int, part: Part) -> torch.Tensor:
        """The stored examples of a batch, or of a part of it, on the device.

        From host memory, the batch that follows is read while the caller computes with this one.
        """
        if self._pool is None:
            return self.train[part.take(self._indices(clock, batch_size))]
        wanted, following = (clock, batch_size, part), (clock + batch_size, batch_size, part)
        found = self._next.get(wanted) or self._pool.submit(self._read, *wanted)
        self._next = {following: self._pool.submit(self._read, *following)}
        return found.result().to(self.device, non_blocking=True)

    def _read(self, clock: int, batch_size: int, part: Part) -> torch.Tensor:
        """The part on the CPU, by NumPy: in a thread, torch would start OpenMP threads of its own."""
        import numpy as np
        import torch

        rows = part.take(self._indices(clock, batch_size)).numpy()
        request_rows(self.train, rows.tolist())
        found = torch.from_numpy(np.take(self.train.numpy(), rows, axis=0))
        return found.pin_memory() if self.device.type == "cuda" else found

    def _indices(self, clock: int, batch_size: int) -> torch.Tensor:
        """Indices of the training examples at positions clock … clock + B − 1 of the stream: int64 `[B]`."""
        import torch

        end = clock + batch_size
        count = len(self.train)
        epochs = range(clock // count, (end - 1) // count + 1)
        self._orders = {epoch: self._order(epoch) for epoch in epochs}
        parts = [self._orders[e][max(clock - e * count, 0) : end - e * count] for e in epochs]
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

    def batch(self, clock: int, batch_size: int, part: Part = WHOLE) -> Batch:
        """Images clock … clock + B − 1, or a part of them: float32 `[B, C, H, W]` in [0, 1].

        With `flip` each is mirrored with a probability of one half.
        """
        import torch

        images = pixels(self._take(clock, batch_size, part))
        if self.flip:
            generator = stream_generator(self._seed, "flip", clock, device=self.device)
            size = (batch_size, 1, 1, 1)
            is_mirrored = torch.randint(2, size, dtype=torch.bool, generator=generator, device=self.device)
            images = images.flip(-1).where(part.take(is_mirrored), images)
        return Batch(images)

    def held_out(self, count: int) -> torch.Tensor:
        """Return the first `count` held-out images, or training images if none are held out: `[≤ count, C, H, W]`."""
        return pixels(super().held_out(count))

    def labels(self) -> Labels | None:
        """Return the labels of `train` and `held`, in their order; None if the dataset has none."""
        if self._labels is None or self.has_held_out:
            return self._labels
        return self._labels._replace(test=self._labels.train)


def choose_held_out(splits: Splits, held_out: int | None) -> SplitIndices:
    """Return the indices of the images for training, and those of the held-out images in the test split.

    Held-out images are ordered by a hash of their content, so that the first k of them are a fair sample even where
    the files are sorted by class. Without a test split the first `held_out` training images in that order are held
    out, by default min(10 %, 1,000), and the others are trained on in that order: file names and the order on disk
    have no influence. With one, they keep the order that they have, if it has a meaning.

    Raises DataError if nothing would be left to train on.
    """
    if splits.test is not None:
        train = slice(None) if splits.has_order else order_by_content(splits.train)
        return train, order_by_content(splits.test)[:held_out]
    count = min(len(splits.train) // 10, 1000) if held_out is None else held_out
    if count >= len(splits.train):
        raise DataError(f"dataset.held_out={count} leaves no training image of {len(splits.train)}; lower it")
    order = order_by_content(splits.train)
    return order[count:], order[:count]


def divide(train: torch.Tensor, test: torch.Tensor | None, chosen: SplitIndices) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (training, held-out) images, or their labels, that `choose_held_out` chose."""
    return train[chosen[0]], (train if test is None else test)[chosen[1]]


def check_distinct(images: torch.Tensor, where: Path, notes: Sequence[str]) -> None:
    """Raise DataError, with `notes` on why it may be, for several images that are all the same."""
    if len(images) > 1 and all(bool((part == images[:1]).all()) for part in images.split(PART)):
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
        for part in images.split(PART)
    ]
    return torch.cat(parts)


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 0 … 255 to float32 in [0, 1]."""
    return images / 255


def order_by_content(images: torch.Tensor) -> list[int]:
    """Return the indices of the images, sorted by a hash of their pixels."""
    parts = (part.contiguous().numpy() for part in images.split(PART))
    keys = [hashlib.blake2b(image, digest_size=16).digest() for part in parts for image in part]
    return sorted(range(len(keys)), key=keys.__getitem__)


def compute_fingerprint(*splits: torch.Tensor) -> str:
    """Return a digest of the shapes and the content of splits of examples."""
    digest = hashlib.blake2b(digest_size=8)
    for images in splits:
        digest.update(repr(tuple(images.shape)).encode())
        digest.update(images.contiguous().cpu().numpy().data)
    return digest.hexdigest()
