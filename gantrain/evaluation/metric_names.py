"""Which numbers samples of a dataset can have, by name: known without torch, as help and the checks of a config are."""

from __future__ import annotations

from collections.abc import Iterable

from gantrain import data
from gantrain.errors import ConfigError

IMAGES = ("fid", "kid", "inception_score", "prdc", "classes", "pairwise_distance", "support_size")
STACKS = ("fid", "kid", "inception_score", "prdc", "pairwise_distance", "support_size", "modes")
POINTS = ("modes", "prdc", "classes", "pairwise_distance")
OF_CLASSES = {"classes", "modes"}  # which only what knows the classes of the data can tell
CLASSIFIER, INCEPTION = NETWORKS = ("classifier", "inception")  # through which images are seen
# The numbers of each metric.
SCALARS = {
    "fid": ("quality/fid_classifier",),
    "kid": ("quality/kid_classifier", "quality/kid_classifier_error"),
    "inception_score": ("quality/inception_score_classifier",),
    "modes": ("quality/high_quality_share", "diversity/modes"),
    "prdc": ("quality/precision", "quality/density", "diversity/recall", "diversity/coverage"),
    "classes": ("diversity/class_entropy", "diversity/class_tv", "diversity/class_kl", "diversity/missing_classes"),
    "pairwise_distance": ("diversity/pairwise_distance",),
    "support_size": ("diversity/support_size",),
}
STACKED_SCALARS = SCALARS | {"modes": ("diversity/modes", "diversity/modes_kl")}


def metrics_of(dataset: str) -> tuple[str, ...]:
    """The metrics that samples of a dataset can have. Raises ConfigError where there are none."""
    if dataset in data.IMAGES:
        return STACKS if is_stacked(dataset) else IMAGES
    if dataset in data.DENSITIES:
        return POINTS
    raise ConfigError(f"dataset={dataset} has no density, and so nothing to compare samples with")


def numbers_of(metrics: Iterable[str], dataset: str, network: str = CLASSIFIER) -> list[str]:
    """The names of the numbers that metrics of a dataset consist of, seen through one of the networks."""
    scalars = STACKED_SCALARS if is_stacked(dataset) else SCALARS
    names = [name for metric in metrics for name in scalars[metric]]
    if network == CLASSIFIER:
        return names
    return [name.replace("score_classifier", "score").replace("_classifier", f"_{network}") for name in names]


def is_stacked(dataset: str) -> bool:
    """Whether the channels of its images are images of their own."""
    return data.classifier_dataset(dataset) != dataset
