"""How examples are looked at before they are measured: images through a network, points of a density as they are.

Images are seen through a classifier of their labels, or through the Inception network, with which the literature
measures. Inception does not know the classes of the data: where a classifier is at hand it tells them, and distances
still come from Inception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import data
from gantrain.errors import ConfigError
from gantrain.evaluation.metric_names import (
    CLASSIFIER,
    INCEPTION,
    NETWORKS,
    OF_CLASSES,
    is_stacked,
    metrics_of,
    numbers_of,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gantrain.data import Dataset, Density
    from gantrain.evaluation.classifier import Judge
    from gantrain.evaluation.inception import Inception
    from gantrain.evaluation.metrics import Seen

AUTO = "auto"  # Inception where it fits and can be had, else the classifier
FEATURES = (AUTO, *NETWORKS)
CHECKSUM_DIGITS = 16
# What is being looked at → a context in which steps are told: steps made, steps in all.
Watching = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@contextmanager
def unwatched(what: str) -> Iterator[Callable[[int, int], None]]:
    """Nobody is told."""
    yield lambda step, steps: None


class Eyes(NamedTuple):
    """How examples are looked at, which may take long: somebody may be watching."""

    see: Callable[[Tensor, Watching], Seen]
    classes: Sequence[str]
    features: dict[str, Any]  # what they are, as evaluation.json tells it


# ---------------------------------------------------------------------------------------------------------------------
# Which network


def named_networks(asked: Mapping[str, Any]) -> tuple[str, ...]:
    """The networks that `features`, and a file of one of them under its name, leave to choose from.

    Raises ConfigError where these contradict each other.
    """
    features, weights = asked["features"], asked[INCEPTION]
    if weights is not None:
        if features == CLASSIFIER:
            raise ConfigError(
                f"{INCEPTION}={weights} is for features={INCEPTION}, here it is {features}; give one of them"
            )
        return (INCEPTION,)
    if features == AUTO and asked[CLASSIFIER] is not None:
        return (CLASSIFIER,)
    return NETWORKS if features == AUTO else (features,)


def network_for(dataset: Dataset, asked: Mapping[str, Any], best: str | None = None) -> str:
    """Through which network examples are seen. Where both would do, and both have the number `best`: Inception for
    coloured images, the photographs that it has been trained on, if it can be had; it may be downloaded then."""
    from gantrain.evaluation import inception

    networks = [
        network
        for network in named_networks(asked)
        if best is None or best in numbers_of(metrics_of(dataset.name), dataset.name, network)
    ]
    if len(networks) == 1:
        return networks[0]
    coloured = isinstance(dataset, data.Images) and dataset.shape[0] == 3 and not is_stacked(dataset.name)
    looked_at = not asked["metrics"] or not OF_CLASSES.issuperset(asked["metrics"])
    return INCEPTION if coloured and looked_at and inception.can_be_had() else CLASSIFIER


# ---------------------------------------------------------------------------------------------------------------------
# What they see


def through_classifier(judge: Judge, device: torch.device) -> Eyes:
    """Images as a classifier sees them."""
    from gantrain.evaluation import classes, classifier
    from gantrain.evaluation import metrics as catalogue

    network = judge.classifier.to(device)

    def see(images: Tensor, watching: Watching) -> Seen:
        with watching(f"the classifier looks at {len(images):,} images") as told:
            features, probabilities = classifier.seen(network, images, told)
        return catalogue.Seen(features, classes.histogram(probabilities), probabilities, images.cpu().flatten(1))

    facts = {"name": CLASSIFIER, "dataset": judge.dataset, "accuracy": judge.accuracy}
    facts |= {"accuracy_on": judge.split, "checksum": judge.checksum[:CHECKSUM_DIGITS]}
    return Eyes(see, network.classes, facts)


def through_inception(inception: Inception, classifier: Eyes | None = None) -> Eyes:
    """Images as the Inception network sees them, and their classes as a classifier does, where there is one."""
    import torch

    from gantrain.evaluation import metrics as catalogue
    from gantrain.evaluation.inception import NAME, seen

    def see(images: Tensor, watching: Watching) -> Seen:
        with watching(f"the Inception network looks at {len(images):,} images") as told:
            features, probabilities = seen(inception, images, told)
        counts = classifier.see(images, watching).counts if classifier else torch.zeros(0, dtype=torch.int64)
        return catalogue.Seen(features, counts, probabilities, images.cpu().flatten(1), INCEPTION)

    facts = {"name": INCEPTION, "network": NAME, "library": inception.library}
    facts |= {"checksum": inception.checksum[:CHECKSUM_DIGITS]}
    if classifier is None:
        return Eyes(see, (), facts)
    return Eyes(see, classifier.classes, facts | {"classes": classifier.features})


def as_points(density: Density) -> Eyes:
    """Points of a density, as they are; their classes are its modes."""
    from gantrain.evaluation import classes
    from gantrain.evaluation import metrics as catalogue

    def see(points: Tensor, watching: Watching) -> Seen:
        return catalogue.Seen(points.double(), classes.modes(points, density.mixture))

    modes = [str(number) for number in range(len(density.mixture.means))]
    return Eyes(see, modes, {"name": "points", "dataset": density.label, "checksum": density.fingerprint})


def described(features: Mapping[str, Any]) -> str:
    """What the features are, in words."""
    if "network" in features:
        classes = f"; classes: {described(features['classes'])}" if "classes" in features else ""
        return f"the Inception network, {features['network']}{classes}"
    if "accuracy" not in features:
        return "the points themselves"
    kind = features["accuracy_on"].replace(" ", "-")
    return f"a classifier of {features['dataset']} with {features['accuracy']:.1%} accuracy on {kind} images"
