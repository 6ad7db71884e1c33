"""The numbers of every metric in `metrics`, computed from the features of real examples and of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gantrain.evaluation import classes, distances
from gantrain.evaluation.features import Features
from gantrain.evaluation.metrics import Metric


def measure(real: Features, samples: Features, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Return the numbers of all `metrics`, by name."""
    numbers: dict[str, float] = {}
    for name, metric in metrics.items():
        numbers |= zip(metric.names(samples.network), FORMULAS[name](real, samples), strict=True)
    return numbers


def _compare_classes(real: Features, samples: Features) -> list[float]:
    return [
        float(classes.entropy(samples.counts)),
        classes.total_variation(samples.counts, real.counts),
        classes.kl_divergence(samples.counts, real.counts),
        float(len(classes.find_missing(samples.counts, real.counts))),
    ]


def _compare_distances(real: Features, samples: Features) -> list[float]:
    """Return the ratio of the mean distances, NaN if all real examples are at one place."""
    reference = distances.mean_distance(real.vectors)
    return [distances.mean_distance(samples.vectors) / reference if reference else math.nan]


def _count_modes(real: Features, samples: Features) -> list[float]:
    """Return the share of good points, modes found and modes assigned; of stacked images, modes found and the KL."""
    found = float((samples.counts > 0).sum())
    if samples.assigned is not None:
        return [float(samples.counts.sum()) / len(samples.vectors), found, float((samples.assigned > 0).sum())]
    return [found, classes.kl_divergence(samples.counts, samples.counts.new_ones(samples.counts.shape))]


# The numbers of each metric in the order of its `directions`, from the `Features` of real examples and of samples.
FORMULAS: dict[str, Callable[[Any, Any], Sequence[float]]] = {
    "fid": lambda real, samples: [distances.frechet_distance(real.vectors, samples.vectors)],
    "kid": lambda real, samples: distances.kernel_distance(real.vectors, samples.vectors),
    "inception_score": lambda real, samples: [classes.inception_score(samples.probabilities)],
    "prdc": lambda real, samples: distances.compute_prdc(real.vectors, samples.vectors),
    "classes": _compare_classes,
    "modes": _count_modes,
    "pairwise_distance": _compare_distances,
    "support_size": lambda real, samples: distances.support_size(samples.pixels, real.pixels),
}
