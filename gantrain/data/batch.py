"""A batch of training examples with their classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """Examples, float32 `[B, *shape]`, and their classes, int64 `[B]`; None where networks are given no classes."""

    images: Tensor
    labels: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `function` applied to the images and to the labels, if there are any."""
        return Batch(function(self.images), None if self.labels is None else function(self.labels))
