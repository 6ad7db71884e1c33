"""Weights of the generator's samples under `matched`, normalised and tempered over a batch.

The gradient of `matched` in the log-ratio r is −w(r), with w = fake' = u² f''(u). A discriminator that is ahead puts r
far below 0 on samples and spreads it over many nats, so a divergence whose w grows with u (KL: w = e^r) learns from one
or two samples of a batch. With weights that are

    normalised   w(r) / mean w(r)               the same direction, free of scale
    tempered     w_β(r) = w(βr) / mean w(βr)    β = min(1, spread / sd(r)), one number for each batch

G's gradient is that of −mean(w_β(r) r), with the weights constant. For every β it is the `matched` gradient of an
f-divergence, the one with f_β''(u) = w(β log u) / u²; β = 1 is the divergence itself and β → 0 is reverse KL. For KL
and the α-divergences f_β is the α-divergence of order αβ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gantrain.objectives.divergence import Divergence
from gantrain.ranges import Numbers

if TYPE_CHECKING:
    from torch import Tensor

SPREADS = Numbers(above=0, also=(None,))


@dataclass(frozen=True)
class Weighting:
    """How the weights of a batch are rescaled.

    Args:
        normalise: Divide the weights by their mean over the batch.
        spread: τ > 0, the standard deviation of r above which weights are tempered; the tempered weights are
            normalised too. None leaves β at 1.

    Raises ConfigError for a spread that is not above 0.
    """

    normalise: bool = False
    spread: float | None = None

    def __post_init__(self) -> None:
        SPREADS.check("gen_weights.spread", self.spread)

    @property
    def is_on(self) -> bool:
        """Whether the weights differ from those of `matched` itself."""
        return self.normalise or self.spread is not None

    def beta(self, r: Tensor) -> Tensor:
        """β = min(1, spread / sd(r)) of the log-ratios `r` [B] of a batch: a scalar."""
        if self.spread is None:
            return r.new_ones(())
        return (self.spread / r.std(correction=0)).clamp(max=1.0)

    def weigh(self, divergence: Divergence, r: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalised weights [B] of samples with the log-ratios `r` [B], and scalars that describe them.

        `weights/effective_sample_size` is (Σw)²/(B Σw²), in (0, 1]. If the weighting is on, `weights/beta` is β,
        `weights/effective_order` is d log w_β/dr at r = 0 (αβ for an α-divergence), and `weights/asked_share` is 1 if
        β = 1 and else 0, so that its mean over steps is a share.
        """
        import torch

        assert divergence.log_weight is not None, f"{divergence.name} has no weights"
        r = r.detach()
        statistics: dict[str, Tensor] = {}
        with torch.autocast(r.device.type, enabled=False):
            if self.is_on:
                beta = self.beta(r)
                statistics |= {
                    "weights/beta": beta,
                    "weights/effective_order": divergence.order * beta,
                    "weights/asked_share": (beta == 1).to(r.dtype),
                }
                r = beta * r
            log_weights = divergence.log_weight(r)
            weights = (log_weights - log_weights.max()).exp()
            weights = weights / weights.mean()
        return weights, statistics | {"weights/effective_sample_size": 1 / weights.square().mean()}


OFF = Weighting()
# What `matched` uses unless told otherwise: the largest spread under which every divergence trains, of those that were
# measured (docs/results/weights.md).
DEFAULT_SPREAD = 0.25
DEFAULT = Weighting(normalise=True, spread=DEFAULT_SPREAD)
