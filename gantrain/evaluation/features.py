"""Features that metrics compare: those of images from a network, and the points of a density themselves.

Images go through a classifier of their labels or, if it is asked for, through the Inception network of the literature.
Inception does not know the classes of the data: metrics of classes then use the classifier beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain import data
from gantrain.console import Progress
from gantrain.data import DatasetSettings
from gantrain.errors import ConfigError, DataError
from gantrain.evaluation.metrics import CLASSIFIER, INCEPTION, NETWORKS, NO_METRICS
from gantrain.files import expand_home

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from gantrain.data import Dataset, Density, Images
    from gantrain.evaluation.classifier import StoredClassifier

AUTO = "auto"  # the classifier, unless a file of Inception's weights is given
FEATURES = (AUTO, *NETWORKS)
CHECKSUM_DIGITS = 16
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, of how many samples, and which network extracts the features of images."""

    metrics: Sequence[str] | None = None  # names; None measures all that the data have
    count: int | None = None  # samples and real examples; None for as many as are held out, at most 10,000
    split: str = "held_out"  # of the real examples, or "training"
    reference: bool = True  # whether as many training examples are measured in place of samples
    features: str = AUTO  # one of FEATURES
    classifier: str | None = None  # file of a stored classifier, in place of that of the data
    inception: str | None = None  # file of Inception's weights, in place of the downloaded ones
    train_classifier: Mapping[str, int] = field(default_factory=dict)  # its settings that differ from the default


class Features(NamedTuple):
    """N images, or N points of a density, as metrics use them.

    The vectors of points are the points themselves, and their counts the points of high quality at each mode. Where no
    network knows the classes of the data, K is 0.
    """

    vectors: Tensor  # float64 [N, F]
    counts: Tensor  # int64 [K], how many of the N are of each class
    probabilities: Tensor | None = None  # float64 [N, K], of images
    pixels: Tensor | None = None  # uint8 [N, P], of images
    network: str = CLASSIFIER  # that extracted the vectors
    assigned: Tensor | None = None  # int64 [K], how many of the N points are assigned to each mode by responsibility


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
    dataset_settings: DatasetSettings,
    settings: EvaluationSettings,
    *,
    needs_classes: bool,
    device: torch.device,
    progress: Progress,
) -> FeatureExtractor:
    """Return the extractor for a dataset, which was loaded with `dataset_settings`.

    A classifier that is missing is trained, weights of Inception are downloaded; beside Inception a classifier is used
    only if `needs_classes`. Raises ConfigError for a classifier of images of another shape, DataError if the images
    have no labels or the weights cannot be had.
    """
    if isinstance(dataset, data.Density):
        return point_extractor(dataset)
    if not isinstance(dataset, data.Images):
        raise ConfigError(NO_METRICS.format(dataset.name))
    network = None
    if choose_network(settings.features, settings.inception) == INCEPTION:
        from gantrain.evaluation import inception

        network = inception.load_inception(expand_home(settings.inception) if settings.inception else None, device)
        if not needs_classes:
            return inception_extractor(network)
    classifier = classifier_extractor(_find_classifier(dataset, dataset_settings, settings, progress), device)
    return classifier if network is None else inception_extractor(network, classifier)


def _find_classifier(
    images: Images, dataset_settings: DatasetSettings, settings: EvaluationSettings, progress: Progress
) -> StoredClassifier:
    from gantrain.evaluation import classifier
    from gantrain.evaluation.classifier_training import obtain_classifier

    if settings.classifier is not None:
        stored = classifier.load_classifier(expand_home(settings.classifier))
    else:
        wanted, examples = choose_classifier_data(dataset_settings), images
        if replace(dataset_settings, flip=None) != wanted or images.flip != data.IMAGES[images.name].flip:
            examples = load_images(wanted, images.device)
        stored = obtain_classifier(
            examples, classifier.cache_path(examples), settings.train_classifier, progress=progress
        )
        check_accuracy(stored, examples)
    if data.IMAGES[images.name].stacks:
        stored = classifier.apply_channelwise(stored, images.shape)
    if stored.classifier.shape != images.shape:
        raise ConfigError(
            f"the classifier {settings.classifier} is for images of shape {list(stored.classifier.shape)}, "
            f"{images.label} has {list(images.shape)}"
        )
    return stored


def check_accuracy(stored: StoredClassifier, images: Images) -> None:
    """Raise DataError if a classifier is not significantly better than the guess of the largest class (binomial test).

    Its features would say nothing of the images.
    """
    from scipy.stats import binom

    labels = images.labels()
    assert labels is not None
    assert labels.test is not None
    counts = labels.test[labels.test >= 0].bincount()
    total = int(counts.sum())
    share = int(counts.max()) / max(total, 1) if len(counts) else 1.0
    if binom.sf(round(stored.accuracy * total) - 1, total, share) > SIGNIFICANCE:
        if share == 1:
            fault = "images of one class alone cannot show that it tells any apart"
            remedy = f"{stored.split.replace(' ', '-')} images of several classes"
        else:
            fault = "it found nothing of the labels in the images"
            better = "labels that do (a folder for each class, or dataset.json)"
            remedy = f"{better}, a longer training (train_classifier.epochs=N)"
        raise DataError(
            f"the classifier of {images.label} is right on {stored.accuracy:.1%} of {total:,} {stored.split} images, "
            f"and always naming the largest class on {share:.1%}: {fault}\n"
            f"give {remedy}, features=inception, or the classifier of other images of the same shape, "
            "classifier=FILE (of `gantrain train`: evaluate.features and evaluate.classifier)"
        )


def choose_classifier_data(settings: DatasetSettings) -> DatasetSettings:
    """Return the data that a dataset's classifier is trained on; for stacked images these are their channels.

    All images of the training split are for training, whatever `held_out` is: one classifier serves all runs on them.
    """
    source = data.IMAGES.get(settings.name)
    name = (source and source.stacks) or settings.name
    label = settings.label if name == settings.name else None
    return replace(settings, name=name, label=label, held_out=None, flip=None)


def load_images(settings: DatasetSettings, device: torch.device) -> Images:
    """Load images to classify. Raises ConfigError for a dataset of points."""
    images = data.load_dataset(settings, device=device)
    if not isinstance(images, data.Images):
        raise ConfigError(f"dataset={settings.name} has no images to classify")
    return images


def classifier_extractor(stored: StoredClassifier, device: torch.device) -> FeatureExtractor:
    """Return the extractor of a classifier's features and classes."""
    from gantrain.evaluation import classes, classifier

    network = stored.classifier.to(device)

    def extract(images: Tensor, progress: Progress) -> Features:
        vectors, probabilities = classifier.compute_features(network, images, progress)
        return Features(vectors, classes.count_classes(probabilities), probabilities, images.cpu().flatten(1))

    description = {
        "name": CLASSIFIER,
        "dataset": stored.dataset,
        "accuracy": stored.accuracy,
        "accuracy_on": stored.split,
        **{key: stored.training[key] for key in ("width", "epochs") if key in stored.training},
        "checksum": stored.checksum[:CHECKSUM_DIGITS],
    }
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
        assigned = classes.assign_modes(points, density.mixture)
        return Features(points.double(), classes.count_modes(points, density.mixture), assigned=assigned)

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
    trained = ", ".join(f"{key} {description[key]}" for key in ("width", "epochs") if key in description)
    text = f"a classifier of {description['dataset']} with {description['accuracy']:.1%} accuracy on {split} images"
    return f"{text} ({trained})"
