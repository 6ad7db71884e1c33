"""The metrics of samples: which numbers each one consists of, and which direction of a number is better.

The names are known without torch, as help and the checks of a configuration need them; `formulas` computes the numbers.
A name begins with `quality/` or `diversity/`, the group in which it is reported; a distance between features ends in
the network that extracted them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from gantrain import data
from gantrain.errors import ConfigError

if TYPE_CHECKING:
    from gantrain.data import Dataset

CLASSIFIER, INCEPTION = NETWORKS = ("classifier", "inception")  # that extract features of images
HIGHER, LOWER, NEITHER = 1, -1, 0  # the better direction of a number


class Metric(NamedTuple):
    """One or more numbers that compare samples with real examples.

    `directions` has the name of each number, in which `{network}` stands for the network that extracted the features,
    and its better direction.
    """

    directions: Mapping[str, int]
    needs_classes: bool = False

    def names(self, network: str) -> list[str]:
        """Return the names of the numbers for features of one network."""
        names = (template.format(network=network) for template in self.directions)
        return [name.replace("score_inception", "score") for name in names]  # which has a plain name in the literature


PRDC = Metric(
    {"quality/precision": HIGHER, "quality/density": HIGHER, "diversity/recall": HIGHER, "diversity/coverage": HIGHER}
)
CLASSES = Metric(
    {
        "diversity/class_entropy": NEITHER,
        "diversity/class_tv": LOWER,
        "diversity/class_kl": LOWER,
        "diversity/missing_classes": LOWER,
    },
    needs_classes=True,
)
PAIRWISE_DISTANCE = Metric({"diversity/pairwise_distance": NEITHER})

POINTS = {
    "modes": Metric(
        {"quality/high_quality_share": HIGHER, "diversity/modes": HIGHER, "diversity/modes_assigned": HIGHER},
        needs_classes=True,
    ),
    "prdc": PRDC,
    "classes": CLASSES,
    "pairwise_distance": PAIRWISE_DISTANCE,
}
IMAGES = {
    "fid": Metric({"quality/fid_{network}": LOWER}),
    "kid": Metric({"quality/kid_{network}": LOWER, "quality/kid_{network}_error": NEITHER}),
    "inception_score": Metric({"quality/inception_score_{network}": HIGHER}),
    "prdc": PRDC,
    "classes": CLASSES,
    "pairwise_distance": PAIRWISE_DISTANCE,
    "support_size": Metric({"diversity/support_size": NEITHER, "diversity/support_ratio": NEITHER}),
}
# Images whose channels are images of their own. Real images may lack some of the 1,000 classes, so samples are compared
# with equal shares.
STACKS = {name: metric for name, metric in IMAGES.items() if name != "classes"} | {
    "modes": Metric({"diversity/modes": HIGHER, "diversity/modes_kl": LOWER}, needs_classes=True)
}


DIRECTIONS = {
    name: direction
    for metric in (*POINTS.values(), *IMAGES.values(), *STACKS.values())
    for network in NETWORKS
    for name, direction in zip(metric.names(network), metric.directions.values(), strict=True)
}


NO_METRICS = "dataset={} has points without a known density; metrics are for images, and for points of a known density"


def metrics_of(dataset: str) -> Mapping[str, Metric]:
    """Return the metrics that samples of a dataset can have, by name. Raises ConfigError if there are none."""
    if dataset in data.IMAGES:
        return STACKS if data.IMAGES[dataset].stacks else IMAGES
    if dataset in data.DENSITIES:
        return POINTS
    raise ConfigError(NO_METRICS.format(dataset))


def has_metrics(dataset: Dataset) -> bool:
    """Return whether samples of a loaded dataset, which may be an array of either kind, have metrics."""
    return isinstance(dataset, data.Images | data.Density)


def better_direction(number: str) -> int:
    """Return HIGHER or LOWER, the direction in which a number is better, or NEITHER."""
    return DIRECTIONS.get(number, NEITHER)
