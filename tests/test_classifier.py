"""The classifier: labels read from every kind of dataset, training, and a file that is whole or refused."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Answer
from PIL import Image
from support.tolerance import assert_close_to_largest

from gantrain import data
from gantrain.data import published
from gantrain.data.images import Labels, pixels
from gantrain.errors import CheckpointError, DataError
from gantrain.evaluation import classifier, classifier_training, features
from gantrain.evaluation.classifier import Classifier, StoredClassifier
from gantrain.evaluation.classifier_training import ClassifierTraining


@pytest.fixture
def digits(gantrain: Callable[..., Answer]) -> data.Images:
    assert gantrain("evaluate", "dataset=digits").code == 0
    images = data.load("digits")
    assert isinstance(images, data.Images)
    return images


@pytest.fixture
def stored(digits: data.Images) -> StoredClassifier:
    return classifier.load_classifier(classifier.cache_path(digits))


# What it is worth


def test_digits_are_told_apart_and_the_accuracy_is_that_of_held_out_images(
    stored: StoredClassifier, digits: data.Images
) -> None:
    every = published.read_digits(Path(), 8, "error")
    assert every.labels is not None
    truth = {image.numpy().tobytes(): int(label) for image, label in zip(every.train, every.labels.train, strict=True)}
    wanted = torch.tensor([truth[image.numpy().tobytes()] for image in digits.held])
    _, probabilities = classifier.compute_features(stored.classifier, digits.held)
    reached = float((probabilities.argmax(1) == wanted).double().mean())
    assert reached >= 0.97
    assert (stored.accuracy, stored.split, stored.dataset) == (pytest.approx(reached), "held out", "digits")
    assert stored.classifier.classes == tuple("0123456789")


def test_what_is_seen_of_an_image_depends_on_it_alone(
    stored: StoredClassifier, digits: data.Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, probabilities = classifier.compute_features(stored.classifier, digits.held)
    assert (features.dtype, features.shape, probabilities.shape) == (torch.float64, (179, 64), (179, 10))
    assert torch.allclose(probabilities.sum(1), torch.ones(179, dtype=torch.float64))
    order = torch.randperm(179)
    monkeypatch.setattr(classifier, "BATCH", 13)
    again, _ = classifier.compute_features(stored.classifier, digits.held[order])
    assert_close_to_largest(again, features[order])


def test_it_is_trained_once_and_then_found(stored: StoredClassifier, gantrain: Callable[..., Answer]) -> None:
    answer = gantrain("evaluate", "dataset=digits", "dataset.held_out=20")
    assert (answer.code, answer.err) == (0, "")
    assert "training" not in answer.out
    trained = f"width {stored.training['width']}, epochs {stored.training['epochs']}"
    described = f"a classifier of digits with {stored.accuracy:.1%} accuracy on held-out images ({trained})"
    assert f"{described}, 10 classes" in answer.out


def photographs(folder: Path, colours: dict[str, tuple[int, int, int]], count: int) -> Path:
    random = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            noisy = np.clip(np.array(colour) + random.normal(0, 60, (32, 32, 3)), 0, 255)
            Image.fromarray(noisy.astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


def test_coloured_images_in_class_folders_train_one_too(tmp_path: Path, gantrain: Callable[..., Answer]) -> None:
    folder = photographs(tmp_path / "in", {"blue": (90, 90, 160), "green": (90, 160, 90), "red": (160, 90, 90)}, 60)
    line = [
        "evaluate",
        "dataset=folder",
        f"dataset.path={folder}",
        "train_classifier.width=4",
        "train_classifier.epochs=40",
        "classifier=own.pt",
    ]
    answer = gantrain(*line)
    assert answer.code == 0, answer.err
    found = classifier.load_classifier(tmp_path / "own.pt")
    assert found.classifier.classes == ("blue", "green", "red")
    assert found.accuracy == 1


def test_images_whose_labels_were_corrected_have_a_classifier_of_their_own(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "in", {"blue": (90, 90, 160), "red": (160, 90, 90)}, 20)
    paths = []
    for name in ("blue", "navy", "navy"):
        if not (folder / name).exists():
            (folder / "blue").rename(folder / name)
        images = data.load("folder", path=folder, held_out=10)
        assert isinstance(images, data.Images)
        paths.append(classifier.cache_path(images))
    assert paths[0] != paths[1] == paths[2]


def test_a_classifier_needs_a_held_out_image_with_a_label(tmp_path: Path) -> None:
    labels = Labels(("a", "b"), torch.tensor([0, 1] * 10), torch.full((10,), -1))
    train, held = torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    images = data.Images("folder", "own", train, held, labels=labels)
    with pytest.raises(DataError, match="none of the held out images of own has a label"):
        classifier_training.make_classifier(images, tmp_path / "c.pt", ClassifierTraining(2, 1))
    assert not (tmp_path / "c.pt").exists()


@pytest.mark.parametrize(
    ("images", "channels", "width", "epochs"), [(50_000, 3, 32, 2), (500, 3, 32, 40), (60_000, 1, 16, 2)]
)
def test_the_default_shows_at_most_two_epochs_of_the_published_sets(
    images: int, channels: int, width: int, epochs: int
) -> None:
    training = ClassifierTraining.default(images, channels)
    assert (training.width, training.epochs) == (width, epochs)


def test_before_it_is_trained_one_line_names_its_size_and_the_ways_out(gantrain: Callable[..., Answer]) -> None:
    line = ["evaluate", "dataset=digits", "classifier=own.pt", "train_classifier.width=2", "train_classifier.epochs=1"]
    said = gantrain(*line).out.splitlines()[0]
    for words in (
        "(width 2, epochs 1)",
        "train_classifier.width=4 train_classifier.epochs=8",
        "classifier=FILE",
        "features=inception",
        "evaluate.classifier",
    ):
        assert words in said


def test_one_that_is_no_better_than_the_largest_class_is_not_used(
    tmp_path: Path, gantrain: Callable[..., Answer]
) -> None:
    """Three folders whose images are alike, as index folders are."""
    folder = photographs(tmp_path / "in", dict.fromkeys("abc", (120, 120, 120)), 70)
    np.save("samples.npy", np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8))
    data_of = ["dataset=folder", f"dataset.path={folder}", "train_classifier.width=2", "train_classifier.epochs=1"]
    answer = gantrain("evaluate", "samples.npy", *data_of)
    assert (answer.code, "features: " in answer.out) == (3, False)
    for words in (
        "the largest class",
        "dataset.json",
        "features=inception",
        "classifier=FILE",
        "of 21 held out images",
    ):
        assert words in answer.err


def test_held_out_images_of_one_class_are_said_to_be_the_reason() -> None:
    labels = Labels(("a", "b"), torch.tensor([0, 1] * 10), torch.zeros(10, dtype=torch.int64))
    train, held = torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    right = StoredClassifier(Classifier((1, 8, 8), ("a", "b"), 2), "own", {}, 1.0, "held out", "")
    with pytest.raises(DataError, match=r"one class alone cannot show .*\ngive held-out images of several classes"):
        features.check_accuracy(right, data.Images("folder", "own", train, held, labels=labels))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train_classifier.epochs=3"], 2, "evaluate dataset=NAME"),
        (["dataset=ring"], 2, "no images"),
        (["dataset=digitz"], 2, "digits"),
        (["dataset=digits", "epochs=3"], 2, "train_classifier.epochs"),
        (["dataset=digits", "train_classifier.epoch=3"], 2, "train_classifier.epochs"),
        (["dataset=digits", "train_classifier.width=0"], 2, "at least 1"),
        (["dataset=digits", "seed=1"], 2, "train_classifier.epochs, .width and .seed"),
        (["dataset=digits", "metrics=fid"], 2, "evaluate RUN metrics=…"),
        (["samples.npy", "dataset=digits", "classifier=own.pt", "train_classifier.width=2"], 2, "give one of them"),
        (["dataset=folder", "dataset.path=flat"], 3, "no labels"),
        (["samples.npy", "dataset=digits", "classifier=no.pt"], 4, "evaluate dataset=NAME classifier=no.pt"),
    ],
)
def test_what_has_no_classifier_is_refused(
    arguments: list[str], code: int, words: str, tmp_path: Path, gantrain: Callable[..., Answer]
) -> None:
    (tmp_path / "flat").mkdir()
    np.save(tmp_path / "samples.npy", np.zeros((30, 8, 8), np.uint8))
    for index in range(3):
        Image.fromarray(np.full((8, 8), index, np.uint8)).save(tmp_path / "flat" / f"{index}.png")
    answer = gantrain("evaluate", *arguments)
    assert answer.code == code
    assert words in answer.err


def test_the_former_command_names_the_new_one(gantrain: Callable[..., Answer]) -> None:
    answer = gantrain("classifier", "dataset=digits", "epochs=3", "seed=1", "out=own.pt")
    assert (answer.code, answer.out) == (2, "")
    assert "gantrain evaluate dataset=NAME" in answer.err


def test_one_that_was_trained_otherwise_is_replaced(gantrain: Callable[..., Answer], tmp_path: Path) -> None:
    line = ["evaluate", "dataset=digits", "classifier=own.pt", "train_classifier.width=2"]
    checksums = []
    for more in ("epochs=1", "epochs=1", "epochs=2", None):
        answer = gantrain(*line, *([f"train_classifier.{more}"] if more else []))
        assert answer.code == 0, answer.err
        checksums.append(classifier.load_classifier(tmp_path / "own.pt").checksum)
    assert checksums[0] == checksums[1] != checksums[2] == checksums[3]


# Training


def fitted(images: data.Images, labels: Labels, training: ClassifierTraining) -> classifier.Classifier:
    network = classifier_training.build_classifier(images, labels, training)
    classifier_training.train_classifier(network, images, labels, training=training)
    return network


@pytest.mark.parametrize("mirrored", [True, False])
def test_an_augmented_image_is_the_image_shifted_by_at_most_a_sixteenth_or_mirrored(mirrored: bool) -> None:
    images = torch.rand(40, 2, 24, 20)
    found = classifier_training.augment(images, torch.Generator().manual_seed(0), mirrored=mirrored)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    seen = set()
    for before, after in zip(padded, found.numpy(), strict=True):
        candidates = {
            (top, left, flip): before[:, top : top + 24, left : left + 20][..., :: -1 if flip else 1]
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
        }
        matching = {key for key, candidate in candidates.items() if np.array_equal(candidate, after)}
        assert len(matching) == 1
        seen |= matching
    assert {top for top, *_ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert {flip for *_, flip in seen} == {False, mirrored}


def test_every_epoch_shows_every_image_once_with_its_label() -> None:
    images = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1).expand(50, 1, 8, 8)
    batches = list(
        classifier_training.iterate_batches(
            images, torch.arange(50), torch.arange(50), ClassifierTraining(2, 3, batch_size=16), mirrored=True
        )
    )
    assert [len(batch) for batch, _ in batches] == [13, 13, 12, 12] * 3
    for batch, targets in batches:
        assert torch.equal((batch[:, 0, 0, 0] * 255).round().long(), targets)
    epochs = torch.cat([targets for _, targets in batches]).view(3, 50)
    assert torch.equal(epochs.sort(1).values, torch.arange(50).expand(3, 50))
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize(
    ("shape", "width"), [((1, 8, 8), 16), ((1, 28, 28), 16), ((3, 32, 32), 4), ((3, 96, 64), 4), ((3, 1, 5), 1)]
)
def test_images_of_any_shape_have_4w_features(shape: tuple[int, int, int], width: int) -> None:
    network = classifier.Classifier(shape, ("a", "b", "c"), width).eval()
    images = torch.rand(2, *shape)
    features = network.features(images)
    maps = network.groups(network.stem(images))
    assert features.shape == (2, 4 * width)
    assert maps.shape[2:] == (math.ceil(shape[1] / 8), math.ceil(shape[2] / 8))
    assert_close_to_largest(network.logits(features), network(images))
    assert network(images).shape == (2, 3)


def test_where_images_may_be_mirrored_both_sides_are_looked_at_but_not_in_training(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    forty = data.Images("folder", "forty", images, images[:20], flip=True)
    labels = Labels(("dark", "light"), (images.flatten(1).float().mean(1) > 127.5).long())
    network = fitted(forty, labels, ClassifierTraining(2, 2))
    features, probabilities = classifier.compute_features(network, images)
    one_sided = classifier.Classifier((3, 8, 8), labels.classes, 2).eval()
    one_sided.load_state_dict(network.state_dict())
    sides = [one_sided.features(side / 255) for side in (images, images.flip(3))]
    assert not torch.allclose(*sides)
    assert_close_to_largest(features, sum(sides) / 2)
    geometric = torch.stack([one_sided(side / 255).softmax(1) for side in (images, images.flip(3))]).log().mean(0).exp()
    assert_close_to_largest(probabilities, geometric / geometric.sum(1, keepdim=True))
    found = classifier.compute_features(network, images.flip(3))
    for mirrored, direct in zip(found, (features, probabilities), strict=True):
        assert_close_to_largest(mirrored, direct)
    assert_close_to_largest(network.train()(images / 255), one_sided.train()(images / 255))


def test_the_seed_alone_decides_the_file(digits: data.Images, tmp_path: Path) -> None:
    checksums = []
    for seed in (0, 0, 1):
        torch.rand(3)
        state, path = torch.get_rng_state(), tmp_path / f"{len(checksums)}.pt"
        stored = classifier_training.make_classifier(digits, path, ClassifierTraining(width=2, epochs=1, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
        assert stored.checksum == hashlib.sha256(path.read_bytes()).hexdigest()
        checksums.append(stored.checksum)
    assert checksums[0] == checksums[1] != checksums[2]


def test_a_last_image_that_fills_no_batch_is_no_batch_of_its_own() -> None:
    """Batch norm, where pooling leaves one pixel, would refuse it."""
    images = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8)
    nine = data.Images("folder", "nine", images, images[:0])
    labels = Labels(("even", "odd"), torch.arange(9) % 2)
    network = fitted(nine, labels, ClassifierTraining(2, 2, batch_size=8))
    assert all(weight.isfinite().all() for weight in network.parameters())


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    rates = [classifier_training.learning_rate(step / 100, 0.2) for step in range(101)]
    assert (rates[0], rates[20], rates[100]) == (0, 1, 0)
    assert rates == pytest.approx(list(np.interp(np.arange(101), [0, 20, 100], [0, 1, 0])))


# The file


def bundle(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_a_damaged_file_is_refused(stored: StoredClassifier, digits: data.Images, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    with pytest.raises(CheckpointError, match=r"c\.pt"):
        classifier.load_classifier(path)
    classifier.save_classifier(path, bundle(classifier.cache_path(digits)))
    assert classifier.load_classifier(path).accuracy == stored.accuracy
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="damaged"):
        classifier.load_classifier(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 1}, r"format 1;.*reads format 3; train another: gantrain evaluate dataset=NAME classifier="),
        ({"accuracy": "high"}, "accuracy"),
        ({"shape": [3, 8, 8]}, "do not fit"),
        ({"classes": ["0", "1"]}, "do not fit"),
        ({"training": {"width": 10**9}}, "do not fit"),
        ({"training": {}}, "do not fit"),
        ({"state": {}}, "do not fit"),
        ({"accuracy": float("nan"), "state": {"stem.0.bias": torch.full((2,), torch.nan)}}, "non-finite"),
    ],
)
def test_a_file_that_does_not_fit_itself_is_refused(
    change: dict[str, Any], words: str, digits: data.Images, tmp_path: Path
) -> None:
    classifier.save_classifier(tmp_path / "c.pt", bundle(classifier.cache_path(digits)) | change)
    with pytest.raises(CheckpointError, match=words):
        classifier.load_classifier(tmp_path / "c.pt")


def test_an_older_versions_file_in_the_cache_is_left_alone_and_another_is_trained(
    digits: data.Images, gantrain: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = bundle(classifier.cache_path(digits)) | {"format": 1}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    old = classifier.cache_path(digits).with_name(f"digits_{digits.fingerprint}.pt")  # as format 1 was named
    classifier.save_classifier(old, content)
    before = old.read_bytes()
    monkeypatch.setattr(ClassifierTraining, "default", lambda *_: ClassifierTraining(2, 1))
    answer = gantrain("evaluate", "dataset=digits")
    assert (answer.code, answer.err) == (0, "")
    assert "training a classifier" in answer.out
    assert (classifier.load_classifier(classifier.cache_path(digits)).dataset, old.read_bytes()) == ("digits", before)


def test_a_cache_that_cannot_be_written_names_the_ways_out(
    gantrain: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    answer = gantrain("evaluate", "dataset=digits")
    assert (answer.code, answer.out) == (7, "")
    assert "set XDG_CACHE_HOME to a folder that can be written, or give another file: classifier=FILE" in answer.err
    answer = gantrain("evaluate", "dataset=digits", "classifier=file/x.pt")
    assert (answer.code, "XDG_CACHE_HOME" in answer.err, "classifier=FILE" in answer.err) == (7, False, True)


# Labels


@pytest.mark.parametrize("held_out", [None, 5, 0])
def test_class_folders_are_labels_in_the_order_of_the_images(held_out: int | None, tmp_path: Path) -> None:
    """Also where a damaged file is skipped, and deeper folders belong to their class."""
    for index in range(40):
        place = tmp_path / "all" / f"class{index % 3}" / ("deeper" if index % 2 else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 3 * index + index % 3, np.uint8)).save(place / f"{index}.png")
    (tmp_path / "all" / "class1" / "0.png").write_bytes(b"")
    images = data.load("folder", path=tmp_path, size=8, held_out=held_out, on_bad="skip")
    assert isinstance(images, data.Images)
    labels = images.labels()
    assert labels is not None
    assert labels.test is not None
    assert labels.classes == ("class0", "class1", "class2")
    told = {3 * index + index % 3: index % 3 for index in range(40)}
    for part, numbers in ((images.train, labels.train), (images.held, labels.test)):
        assert [told[int(image[0, 0, 0])] for image in part] == numbers.tolist()
    assert images.split == ("training" if held_out == 0 else "held out")
    assert torch.equal(pixels(images.held[:4]), images.held_out(4))
