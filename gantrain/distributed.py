"""The part of a batch that one process of several trains on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Part(NamedTuple):
    """The rows of a global batch that belong to process `rank` of `ranks`.

    Every process draws the whole batch from the same streams and takes its rows, so that the numbers of a run do not
    depend on how many processes share it. The batch has to be divisible by `ranks`.
    """

    rank: int = 0
    ranks: int = 1

    def take(self, rows: Tensor) -> Tensor:
        """Return this process's rows `[B / ranks, …]` of `rows` `[B, …]`."""
        if self.ranks == 1:
            return rows
        size, rest = divmod(len(rows), self.ranks)
        if rest:
            raise ValueError(f"a batch of {len(rows)} cannot be divided among {self.ranks} processes")
        return rows[self.rank * size : (self.rank + 1) * size]


WHOLE = Part()
