"""The metrics of samples: which numbers each one consists of, which direction is better, and how they are computed.

The names are known without torch, as help and the checks of a configuration need them. A name begins with `quality/` or
`diversity/`, the group in which it is reported; a distance between features ends in the network that they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from gantrain import data
from gantrain.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

CLASSIFIER, INCEPTION = NETWORKS = ("classifier", "inception")  # that extract features of images
HIGHER, LOWER, NEITHER = 1, -1, 0  # the better direction of a number


class Features(NamedTuple):
    """N images, or N points of a density, as metrics use them.

    The vectors of points are the points themselves, and their counts the points of high quality at each mode. Where no
    network knows the classes of the data, K is 0.
    """

    vectors: Tensor  # float [N, F]
    counts: Tensor  # int64 [K], how many of the N are of each class
    probabilities: Tensor | None = None  # float [N, K], of images
    pixels: Tensor | None = None  # uint8 [N, P], of images
    network: str = CLASSIFIER  # that extracted the vectors


class Metric(NamedTuple):
    """One or more numbers that compare samples with real examples.

    `directions` has each number's name, in which `{network}` stands for the network that extracted the features.
    `compute(real, samples)` returns their values in that order.
    """

    directions: Mapping[str, int]
    compute: Callable[[Features, Features], Sequence[float]]
    needs_classes: bool = False

    def names(self, network: str = CLASSIFIER) -> list[str]:
        """Return the names of the numbers for features of one network."""
        return [_name(template, network) for template in self.directions]


def _name(template: str, network: str) -> str:
    # With the Inception network the score has its plain name.
    return template.format(network=network).replace("score_inception", "score")


def _frechet_distance(real: Features, samples: Features) -> list[float]:
    from gantrain.evaluation import distances

    return [distances.frechet_distance(real.vectors, samples.vectors)]


def _kernel_distance(real: Features, samples: Features) -> Sequence[float]:
    from gantrain.evaluation import distances

    return distances.kernel_distance(real.vectors, samples.vectors)


def _inception_score(real: Features, samples: Features) -> list[float]:
    from gantrain.evaluation import classes

    assert samples.probabilities is not None
    return [classes.inception_score(samples.probabilities)]


def _prdc(real: Features, samples: Features) -> Sequence[float]:
    from gantrain.evaluation import prdc

    return prdc.compute_prdc(real.vectors, samples.vectors)


def _class_shares(real: Features, samples: Features) -> list[float]:
    from gantrain.evaluation import classes

    return [
        classes.entropy(samples.counts),
        classes.total_variation(samples.counts, real.counts),
        classes.kl_divergence(samples.counts, real.counts),
        float(len(classes.find_missing(samples.counts, real.counts))),
    ]


def _pairwise_distance(real: Features, samples: Features) -> list[float]:
    from gantrain.evaluation import prdc

    return [prdc.mean_distance(samples.vectors) / prdc.mean_distance(real.vectors)]


def _support_size(real: Features, samples: Features) -> list[float]:
    from gantrain.evaluation import prdc

    assert real.pixels is not None
    assert samples.pixels is not None
    return [prdc.support_size(samples.pixels, real.pixels)]


def _modes(real: Features, samples: Features) -> list[float]:
    share = float(samples.counts.sum()) / len(samples.vectors)
    return [share, float((samples.counts > 0).sum())]


def _stacked_modes(real: Features, samples: Features) -> list[float]:
    from gantrain.evaluation import classes

    uniform = samples.counts.new_ones(samples.counts.shape)
    return [float((samples.counts > 0).sum()), classes.kl_divergence(samples.counts, uniform)]


PRDC = Metric(
    {"quality/precision": HIGHER, "quality/density": HIGHER, "diversity/recall": HIGHER, "diversity/coverage": HIGHER},
    _prdc,
)
CLASSES = Metric(
    {
        "diversity/class_entropy": NEITHER,
        "diversity/class_tv": LOWER,
        "diversity/class_kl": LOWER,
        "diversity/missing_classes": LOWER,
    },
    _class_shares,
    needs_classes=True,
)
PAIRWISE_DISTANCE = Metric({"diversity/pairwise_distance": NEITHER}, _pairwise_distance)

POINTS = {
    "modes": Metric(
        {"quality/high_quality_share": HIGHER, "diversity/modes": HIGHER},
        _modes,
        needs_classes=True,
    ),
    "prdc": PRDC,
    "classes": CLASSES,
    "pairwise_distance": PAIRWISE_DISTANCE,
}
IMAGES = {
    "fid": Metric({"quality/fid_{network}": LOWER}, _frechet_distance),
    "kid": Metric({"quality/kid_{network}": LOWER, "quality/kid_{network}_error": NEITHER}, _kernel_distance),
    "inception_score": Metric({"quality/inception_score_{network}": HIGHER}, _inception_score),
    "prdc": PRDC,
    "classes": CLASSES,
    "pairwise_distance": PAIRWISE_DISTANCE,
    "support_size": Metric({"diversity/support_size": NEITHER}, _support_size),
}
# Of images whose channels are images of their own. Real images may lack some of the 1,000 classes, so that samples are
# compared with equal shares and not with theirs.
STACKS = {name: metric for name, metric in IMAGES.items() if name != "classes"} | {
    "modes": Metric({"diversity/modes": HIGHER, "diversity/modes_kl": LOWER}, _stacked_modes, needs_classes=True)
}


# ---------------------------------------------------------------------------------------------------------------------
# Metrics of a dataset


def metrics_of(dataset: str) -> Mapping[str, Metric]:
    """Return the metrics that samples of a dataset can have, by name. Raises ConfigError if there are none."""
    if dataset in data.IMAGES:
        return STACKS if is_stacked(dataset) else IMAGES
    if dataset in data.DENSITIES:
        return POINTS
    raise ConfigError(f"dataset={dataset} has no density, and so nothing to compare samples with")


def is_stacked(dataset: str) -> bool:
    """Return whether each channel of the dataset's images is an image of its own."""
    return data.classifier_dataset(dataset) != dataset


def number_names(metrics: Iterable[str], dataset: str, network: str = CLASSIFIER) -> list[str]:
    """Return the names of all numbers of these metrics, for features of one network."""
    known = metrics_of(dataset)
    return [number for name in metrics for number in known[name].names(network)]


def better_direction(number: str) -> int:
    """Return HIGHER or LOWER, the direction in which a number is better, or NEITHER."""
    return _directions().get(number, NEITHER)


@cache
def _directions() -> dict[str, int]:
    metrics = [metric for table in (POINTS, IMAGES, STACKS) for metric in table.values()]
    return {
        _name(template, network): direction
        for metric in metrics
        for template, direction in metric.directions.items()
        for network in NETWORKS
    }


def measure(real: Features, samples: Features, metrics: Iterable[Metric]) -> dict[str, float]:
    """Return the numbers of all `metrics`, by name."""
    return {
        name: value
        for metric in metrics
        for name, value in zip(metric.names(samples.network), metric.compute(real, samples), strict=True)
    }
