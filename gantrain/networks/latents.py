"""The generator's input: latents `[B, size]` from a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gantrain.seeding import stream_generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PRIORS = ("normal", "uniform")


@dataclass(frozen=True)
class Latents:
    """z ~ N(0, I) (`normal`) or U(−1, 1) (`uniform`), of `size` dimensions, on `device`."""

    size: int
    prior: str = "normal"
    device: torch.device | str = "cpu"

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return latents `[count, size]`, float32, from torch's default generator on `device`, or from `generator`.

        A generator on the CPU gives the same latents on every device.
        """
        import torch

        kind: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu") if generator else self.device}
        if self.prior == "normal":
            return torch.randn(count, self.size, generator=generator, **kind).to(self.device)
        return torch.rand(count, self.size, generator=generator, **kind).to(self.device) * 2 - 1

    def draw_fixed(self, count: int, seed: int) -> Tensor:
        """Return the latents of every grid of a run: the same for all runs with the same seed, on every device."""
        return self.draw(count, stream_generator(seed, "grid"))
