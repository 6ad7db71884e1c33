"""A wrong formula of the catalogue is found by `gantrain verify`, and the right ones never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gantrain.objectives.divergence import Divergence
from gantrain.objectives.divergences import CATALOGUE

# No training: the exact log-ratio is the discriminator.
EXACT = ("verify", "images=0", "seeds=1", "held_out=100000")

PLANTED: dict[str, Callable[[Divergence], Divergence]] = {
    "real × 1.1": lambda d: replace(d, real=lambda r: 1.1 * d.real(r)),
    "fake × .95": lambda d: replace(d, fake=lambda r: 0.95 * d.fake(r)),
    "real and fake halved": lambda d: replace(d, real=lambda r: d.real(r) / 2, fake=lambda r: d.fake(r) / 2),
    "real and fake exchanged": lambda d: replace(d, real=d.fake, fake=d.real),
    "fake' ≠ e^r real'": lambda d: replace(
        d, log_weight=None, fake=lambda r: d.fake(r) + 1e-3 * r.sin().square(), real=lambda r: d.real(r)
    ),
    "log_weight + 1e-3": lambda d: replace(d, log_weight=lambda r: d.log_weight(r) + 1e-3),  # type: ignore[misc]
}


def can_be_planted(error: str, divergence: Divergence) -> bool:
    """Total variation's two formulas are the same, and it has no weight."""
    return divergence.invertible or error not in ("real and fake exchanged", "log_weight + 1e-3")


@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_is_found(gantrain, monkeypatch, tried, times, error):
    for name in times.of([name for name, right in CATALOGUE.items() if can_be_planted(error, right)], 4):
        with tried("a wrong formula in the catalogue"), monkeypatch.context() as patch:
            patch.setitem(CATALOGUE, name, PLANTED[error](CATALOGUE[name]))
            answer = gantrain(*EXACT)
            assert answer.code == 9, name
            assert f"{name} has " in answer.err
            assert answer.out == "", "before any training"
            assert answer.err.count("\n") == 1


def test_at_the_exact_ratio_there_is_no_false_alarm(gantrain, tried, times):
    for seed in range(times(2, soak=200)):
        with tried("a run of verify at the exact ratio, which finds nothing"):
            answer = gantrain(*EXACT, f"seed={seed}")
            assert (answer.code, answer.err) == (0, "")
