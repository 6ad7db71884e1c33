"""Features that metrics compare: those of images from a network, and the points of a density themselves.

Images go through a classifier of their labels or, if it is asked for, through the Inception network of the literature.
Inception does not know the classes of the data: metrics of classes then use the classifier beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import data
from gantrain.console import Progress
from gantrain.errors import ConfigError
from gantrain.evaluation.metrics import CLASSIFIER, INCEPTION, NETWORKS, Features, Metric, is_stacked

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from gantrain.data import Dataset, Density, Images
    from gantrain.evaluation.classifier import StoredClassifier

AUTO = "auto"  # the classifier, unless a file of Inception's weights is given
FEATURES = (AUTO, *NETWORKS)
CHECKSUM_DIGITS = 16


@dataclass(frozen=True)
class FeatureSettings:
    """Which network extracts the features of images, and where its files are.

    `classifier` is the file of a stored classifier, in place of the one of the data; `inception` that of Inception's
    weights, in place of the downloaded ones. `train_classifier` are settings of the classifier's training.
    """

    features: str = AUTO
    classifier: str | None = None
    inception: str | None = None
    train_classifier: Mapping[str, int] = field(default_factory=dict)


class FeatureExtractor(NamedTuple):
    """Extracts features of 8-bit images `[N, C, H, W]` or of points `[N, d]`."""

    extract: Callable[[Tensor, Progress], Features]
    classes: Sequence[str]
    description: dict[str, Any]  # as evaluation.json has it under "features"


def choose_network(features: str, inception: str | None) -> str:
    """Return the network that `features`, and a file of Inception's weights, ask for.

    Raises ConfigError if they contradict each other.
    """
    if inception is not None and features == CLASSIFIER:
        raise ConfigError(f"{INCEPTION}={inception} is for features={INCEPTION}, but features={features}; give one")
    return INCEPTION if inception is not None else CLASSIFIER if features == AUTO else features


def build_extractor(
    dataset: Dataset,
    dataset_settings: Mapping[str, Any],
    settings: FeatureSettings,
    *,
    metrics: Iterable[Metric],
    device: torch.device,
    progress: Progress,
) -> FeatureExtractor:
    """Return the extractor for a dataset, which was loaded with `dataset_settings`, and for these metrics.

    A classifier that is missing is trained, weights of Inception are downloaded. Raises ConfigError for a classifier of
    images of another shape, DataError if the images have no labels or the weights cannot be had.
    """
    if not isinstance(dataset, data.Images):
        assert isinstance(dataset, data.Density)
        return point_extractor(dataset)
    if choose_network(settings.features, settings.inception) == CLASSIFIER:
        return classifier_extractor(_find_classifier(dataset, dataset_settings, settings, progress=progress), device)

    from gantrain.evaluation import inception

    weights = inception.obtain_weights(Path(settings.inception) if settings.inception else None)
    classes = None
    if any(metric.needs_classes for metric in metrics):
        classes = classifier_extractor(_find_classifier(dataset, dataset_settings, settings, progress=progress), device)
    return inception_extractor(inception.load_inception(weights, device), classes)


def _find_classifier(
    dataset: Images, dataset_settings: Mapping[str, Any], settings: FeatureSettings, *, progress: Progress
) -> StoredClassifier:
    from gantrain.evaluation import classifier
    from gantrain.evaluation.classifier_training import obtain_classifier

    if settings.classifier is None:
        images = dataset
        # The dataset itself, if it is what the classifier is trained on, is not read again.
        is_default = dataset_settings["held_out"] is None
        is_default &= dataset_settings["flip"] in (None, data.IMAGES[dataset.name].flip)
        if not is_default or is_stacked(dataset.name):
            images = load_classifier_images(dataset_settings, dataset.train.device)
        stored = obtain_classifier(images, classifier.cache_path(images), settings.train_classifier, progress=progress)
    else:
        stored = classifier.load_classifier(Path(settings.classifier))
    if is_stacked(dataset.name):
        stored = classifier.apply_channelwise(stored, dataset.shape)
    if stored.classifier.shape != dataset.shape:
        raise ConfigError(
            f"the classifier {settings.classifier} is for images of shape {list(stored.classifier.shape)}, "
            f"{dataset.label} has {list(dataset.shape)}"
        )
    return stored


def load_classifier_images(dataset_settings: Mapping[str, Any], device: torch.device) -> Images:
    """Load the images that a dataset's classifier is trained on; of stacked images these are their channels.

    All images of the training split are for training, whatever `held_out` is: one classifier serves all runs on them.
    Raises ConfigError for a dataset of points.
    """
    name = data.classifier_dataset(dataset_settings["name"])
    label = dataset_settings["label"] if name == dataset_settings["name"] else None
    changes = {"name": name, "label": label, "held_out": None, "flip": None}
    images = data.load(**{**dataset_settings, **changes}, device=device)
    if not isinstance(images, data.Images):
        raise ConfigError(f"dataset={dataset_settings['name']} has no images to classify")
    return images


# ---------------------------------------------------------------------------------------------------------------------
# Extractors


def classifier_extractor(stored: StoredClassifier, device: torch.device) -> FeatureExtractor:
    """Return the extractor of a classifier's features and classes."""
    from gantrain.evaluation import classes, classifier

    network = stored.classifier.to(device)

    def extract(images: Tensor, progress: Progress) -> Features:
        vectors, probabilities = classifier.compute_features(network, images, progress)
        return Features(vectors, classes.count_classes(probabilities), probabilities, images.cpu().flatten(1))

    description = {"name": CLASSIFIER, "dataset": stored.dataset, "accuracy": stored.accuracy}
    description |= {"accuracy_on": stored.split, "checksum": stored.checksum[:CHECKSUM_DIGITS]}
    return FeatureExtractor(extract, network.classes, description)


def inception_extractor(network: nn.Module, classifier: FeatureExtractor | None = None) -> FeatureExtractor:
    """Return the extractor of Inception's features, with the classes of a classifier if one is given."""
    import torch

    from gantrain.evaluation import inception

    def extract(images: Tensor, progress: Progress) -> Features:
        vectors, probabilities = inception.compute_features(network, images, progress)
        counts = classifier.extract(images, progress).counts if classifier else torch.zeros(0, dtype=torch.int64)
        return Features(vectors, counts, probabilities, images.cpu().flatten(1), INCEPTION)

    description: dict[str, Any] = {"name": INCEPTION, "network": inception.NAME, "library": inception.library_version()}
    description |= {"checksum": inception.SHA256[:CHECKSUM_DIGITS]}
    if classifier is None:
        return FeatureExtractor(extract, (), description)
    return FeatureExtractor(extract, classifier.classes, description | {"classes": classifier.description})


def point_extractor(density: Density) -> FeatureExtractor:
    """Return the extractor for points of a density: the points themselves; their classes are its modes."""
    from gantrain.evaluation import classes

    def extract(points: Tensor, progress: Progress) -> Features:
        return Features(points.double(), classes.count_modes(points, density.mixture))

    modes = [str(number) for number in range(len(density.mixture.means))]
    description = {"name": "points", "dataset": density.label, "checksum": density.fingerprint}
    return FeatureExtractor(extract, modes, description)


def describe_features(description: Mapping[str, Any]) -> str:
    """Return the description of features in words."""
    if "network" in description:
        classes = f"; classes: {describe_features(description['classes'])}" if "classes" in description else ""
        return f"the Inception network, {description['network']}{classes}"
    if "accuracy" not in description:
        return "the points themselves"
    split = description["accuracy_on"].replace(" ", "-")
    return f"a classifier of {description['dataset']} with {description['accuracy']:.1%} accuracy on {split} images"
