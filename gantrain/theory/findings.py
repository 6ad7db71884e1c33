r"""Comparison of estimates with the true value of a divergence: readings with standard errors, findings and verdicts.

**Standard errors.** The held-out draws are split into parts. The variance over the parts and the variance over seeds,
each with its own weights and draws, give two standard errors of the mean, of which the larger is used. Both are too
small if the average depends on rare draws (mostly for χ²) that did not occur. A bound therefore has a third one, that
of the same average at the exact ratio,

    √((Var_p[real(r*)] + Var_q[fake(r*)]) / draws)

by quadrature. It is infinite if the tails of p or q are too heavy for the other, and then no difference is significant.
The tests are at `ALLOWED_ERRORS` times the largest of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gantrain.theory.cases import Truth

# A normal variable is farther than 5 standard errors from its mean once in 1.7 million draws, so that 36 bounds, judged
# twice, give a false alarm less than once in 30,000 runs.
ALLOWED_ERRORS = 5.0


@dataclass(frozen=True)
class Reading:
    """The mean of a number over seeds and held-out draws, and its standard error."""

    mean: float
    standard_error: float


def average_over_seeds(runs: Sequence[Sequence[float]]) -> Reading:
    """Return the mean of one number, `[seeds, parts]`, and the larger of its standard errors over parts and seeds."""
    import torch

    values = torch.tensor(runs, dtype=torch.float64)
    means = values.mean(1)
    error = float((values.var(1).mean() / values.numel()).sqrt())
    if len(means) > 1:
        error = max(error, float(means.std()) / math.sqrt(len(means)))
    return Reading(float(means.mean()), error)


@dataclass(frozen=True)
class Finding:
    """The exact value of one divergence, how it was computed, and the bound and the plug-in estimate that D gives.

    `at_exact_ratio` is the bound with r* in place of D's r, on the same draws, and `exact_ratio_standard_error` its
    standard error by quadrature; that and `true` may be inf. `pareto_k` and `plug_in_is_heavy` are those of
    the truth.
    """

    name: str
    true: float
    true_by: str
    bound: Reading
    exact_ratio_standard_error: float
    plug_in: Reading
    at_exact_ratio: Reading
    pareto_k: float = math.nan
    plug_in_is_heavy: bool = False

    def allowed_error(self, bound: Reading) -> float:
        """Return the difference of `bound` or `at_exact_ratio` from the true value that chance explains."""
        return ALLOWED_ERRORS * max(bound.standard_error, self.exact_ratio_standard_error)

    @property
    def exceeds(self) -> bool:
        """Whether the bound exceeds the true value by more than its allowed error, or is not a number."""
        excess = self.bound.mean - self.true
        return not (excess <= 0 or excess <= self.allowed_error(self.bound))

    @property
    def deviates(self) -> bool:
        """Whether a finite true value and the bound at the exact ratio differ by more than that, or it is no number."""
        difference = abs(self.at_exact_ratio.mean - self.true)
        return math.isfinite(self.true) and not difference <= self.allowed_error(self.at_exact_ratio)

    @property
    def verdict(self) -> str:
        """The result of the comparison in a few words."""
        if self.exceeds or self.deviates:
            return "EXCEEDS" if self.exceeds else "DEVIATES"
        if math.isinf(self.true):
            return "holds: true is ∞"
        return "not judged" if math.isinf(self.exact_ratio_standard_error) else "holds"

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and the verdict as plain data."""
        numbers = {key: value for key, value in asdict(self).items() if key != "name"}
        return numbers | {"verdict": self.verdict}


def compare_with_truth(truths: Mapping[str, Truth], readings: Mapping[str, Reading], draws: int) -> list[Finding]:
    """Return the finding of every divergence in `truths`.

    `readings` are D's, with the bounds at the exact ratio; `draws` is the number of draws of all seeds.
    """
    return [
        Finding(
            name,
            true=truth.value,
            true_by=truth.method,
            bound=readings[f"bound/{name}"],
            exact_ratio_standard_error=math.sqrt(truth.variance / draws),
            plug_in=readings[f"estimate/{name}"],
            at_exact_ratio=readings[f"exact/{name}"],
            pareto_k=truth.pareto_k,
            plug_in_is_heavy=truth.plug_in_is_heavy,
        )
        for name, truth in truths.items()
    ]
