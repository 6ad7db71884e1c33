"""Stacked MNIST: what is stacked, its 1,000 modes, and their count in samples."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Answer
from scipy import stats
from support.datasets import place_all, publish_idx
from support.tolerance import assert_close_to_largest
from torch import Tensor

from gantrain import data
from gantrain.comparison.comparison import compare
from gantrain.comparison.plots import encode_plots
from gantrain.data import published
from gantrain.data.images import pixels
from gantrain.errors import DataError
from gantrain.evaluation import classifier
from gantrain.evaluation.classifier import ChannelwiseClassifier, Classifier, StoredClassifier

WHOLE, STACKS = published.STACKS, (3000, 600)
TRAINING = ("train_classifier.epochs=20", "train_classifier.width=16")
Digits = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def digits() -> Digits:
    """900 grey 28×28 images in the place of MNIST's: noisy stripes, of a width and direction for each class."""
    random = np.random.default_rng(0)
    numbers = random.integers(0, 10, 900)
    frequencies = np.array([0.3, 0.7, 1.2, 1.9, 2.8])[numbers % 5, None]
    waves = np.sin(frequencies * np.arange(28) + random.uniform(0, 6, (900, 1)))
    stripes = np.where(numbers[:, None, None] < 5, waves[:, None, :], waves[:, :, None])
    images = (128 + 90 * stripes + random.normal(0, 10, (900, 28, 28))).clip(0, 255).astype(np.uint8)
    numbers = numbers.astype(np.uint8)
    return {"train": images[:600], "train_labels": numbers[:600], "test": images[600:], "test_labels": numbers[600:]}


@pytest.fixture(scope="module")
def root(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which these digits are what MNIST's authors published."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "STACKS", STACKS)
        place_all(folder, publish_idx(patch, "mnist", **digits).downloads)
        yield folder


def loaded(root: Path, **settings: Any) -> data.Images:
    images = data.load("stacked_mnist", root=root, **settings)
    assert isinstance(images, data.Images)
    return images


@pytest.fixture
def stored(root: Path, gantrain: Callable[..., Answer]) -> StoredClassifier:
    """The classifier of single digits, trained once for all tests: naming the stacks trains that of their channels."""
    single = data.load("mnist", root=root)
    assert isinstance(single, data.Images)
    if not classifier.cache_path(single).exists():
        answer = gantrain("evaluate", "dataset=stacked_mnist", f"dataset.root={root}", *TRAINING)
        assert answer.code == 0, answer.err
        assert "of mnist" in answer.out
    return classifier.load_classifier(classifier.cache_path(single))


@pytest.fixture
def prototypes(stored: StoredClassifier, digits: Digits) -> Tensor:
    """The image of each digit that the classifier is surest of: uint8 `[10, 28, 28]`."""
    images, numbers = torch.from_numpy(digits["train"]), torch.from_numpy(digits["train_labels"])
    _, probabilities = classifier.compute_features(stored.classifier, images[:, None])
    chosen = [int((probabilities[:, digit] * (numbers == digit)).argmax()) for digit in range(10)]
    assert probabilities[chosen].argmax(1).tolist() == list(range(10))
    return images[chosen]


# What is stacked


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_channel_is_an_image_of_its_split_and_the_class_is_their_number(
    split: str, root: Path, digits: Digits
) -> None:
    images = loaded(root)
    labels = images.labels()
    assert labels is not None
    assert labels.classes == tuple(f"{number:03}" for number in range(1000))
    stacks, numbers = (images.train, labels.train) if split == "train" else (images.held, labels.test)
    digit_of = zip(digits[split], digits[f"{split}_labels"].tolist(), strict=True)
    known = {image.tobytes(): number for image, number in digit_of}
    assert stacks.shape == (STACKS[split == "test"], 3, 28, 28)
    for stack, number in zip(stacks.numpy(), numbers.tolist(), strict=True):
        hundreds, tens, units = (known[channel.tobytes()] for channel in stack)
        assert 100 * hundreds + 10 * tens + units == number


def test_channels_are_drawn_independently_and_all_images_are_used(root: Path, digits: Digits) -> None:
    labels = loaded(root).labels()
    assert labels is not None
    channels = torch.stack([labels.train // 100, labels.train // 10 % 10, labels.train % 10])
    shares = np.bincount(digits["train_labels"], minlength=10) / len(digits["train"])
    for channel in channels.numpy():
        assert stats.chisquare(np.bincount(channel, minlength=10), shares * STACKS[0]).pvalue > 1e-3
    for one, other in itertools.combinations(channels.numpy(), 2):
        table = np.histogram2d(one, other, bins=10)[0]
        assert stats.chi2_contingency(table).pvalue > 1e-3
    shown = {channel.tobytes() for stack in loaded(root).train.numpy() for channel in stack}
    assert len(shown) > 0.99 * len({image.tobytes() for image in digits["train"]})


def test_all_modes_are_in_both_splits_at_their_true_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "STACKS", WHOLE)
    images = loaded(root)
    labels = images.labels()
    assert labels is not None
    assert labels.test is not None
    assert (images.size, len(images.held), images.split) == (128_000, 26_000, "test")
    assert len(labels.train.unique()) == len(labels.test.unique()) == 1000


def test_the_images_are_the_same_for_every_seed(root: Path) -> None:
    first, second = loaded(root, seed=0), loaded(root, seed=1)
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.held, second.held)
    assert not torch.equal(first.batch(0, 50).images, second.batch(0, 50).images)


def test_a_missing_file_is_mnists(root: Path, tmp_path: Path) -> None:
    messages = []
    for name in ("mnist", "stacked_mnist"):
        with pytest.raises(DataError, match="train-images") as caught:
            data.load(name, root=tmp_path / "empty")
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


# How stacks are judged


def test_a_stack_is_seen_channel_by_channel() -> None:
    torch.manual_seed(0)
    single = Classifier((1, 12, 12), tuple("abc"), 2).eval()
    stacks = torch.randint(0, 256, (5, 2, 12, 12), dtype=torch.uint8)
    together = ChannelwiseClassifier(single, 2)
    features, probabilities = classifier.compute_features(together, stacks)
    parts = [classifier.compute_features(single, stacks[:, [channel]]) for channel in range(2)]
    assert_close_to_largest(features, torch.cat([each for each, _ in parts], 1))
    joint = np.einsum("ni,nj->nij", *(each.numpy() for _, each in parts)).reshape(5, 9)
    assert_close_to_largest(probabilities, joint)
    assert together.classes == ("aa", "ab", "ac", "ba", "bb", "bc", "ca", "cb", "cc")
    assert_close_to_largest(together.features(pixels(stacks)), features)


def evaluated(gantrain: Callable[..., Answer], root: Path, samples: Tensor, *arguments: str) -> dict[str, Any]:
    """What `gantrain evaluate` writes about these stacks."""
    np.savez("samples.npz", samples.numpy())
    answer = gantrain("evaluate", "samples.npz", "dataset=stacked_mnist", f"dataset.root={root}", *arguments)
    assert answer.code == 0, answer.err
    return json.loads(Path("evaluation/evaluation.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kept", [10, 1])
def test_the_modes_of_a_generator_are_counted(
    kept: int, root: Path, prototypes: Tensor, gantrain: Callable[..., Answer]
) -> None:
    """Of `kept` digits, the first of them thrice as often in the first channel."""
    random = np.random.default_rng(0)
    numbers = random.integers(0, kept, (600, 3))
    numbers[:200, 0] = 0
    modes = [tuple(row) for row in numbers.tolist()]
    counts = np.array([modes.count(mode) for mode in itertools.product(range(10), repeat=3)])
    found = evaluated(gantrain, root, prototypes[torch.from_numpy(numbers)], "metrics=modes", "count=600")
    assert found["metrics"]["diversity/modes"] == (counts > 0).sum()
    assert found["metrics"]["diversity/modes_kl"] == pytest.approx(stats.entropy(counts / 600, np.full(1000, 1e-3)))
    assert list(found["class_histogram"]["samples"].values()) == counts.tolist()
    assert found["reference"]["diversity/modes"] > 200
    assert (found["features"]["name"], found["features"]["dataset"]) == ("classifier", "mnist")


def test_a_run_is_trained_evaluated_and_compared(
    root: Path, stored: StoredClassifier, gantrain: Callable[..., Answer]
) -> None:
    """With the natural network; the classifier that was named counts as the one that was found."""
    arguments = ["dataset=stacked_mnist", f"dataset.root={root}", "train.images=64", "train.batch_size=32"]
    assert gantrain("train", "run_dir=run", *arguments, "train.held_out_images=20").code == 0
    answer = gantrain("evaluate", "run", "count=60")
    assert answer.code == 0, answer.err
    assert "missing:" not in answer.out
    found = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))
    assert set(found["metrics"]) == set(found["reference"]) == {
        *("quality/fid_classifier", "quality/kid_classifier", "quality/kid_classifier_error"),
        *("quality/inception_score_classifier", "quality/precision", "quality/density", "diversity/recall"),
        *("diversity/coverage", "diversity/pairwise_distance", "diversity/support_size", "diversity/support_ratio"),
        *("diversity/modes", "diversity/modes_kl"),
    }  # fmt: skip
    single = data.load("mnist", root=root)
    assert isinstance(single, data.Images)
    named = gantrain("evaluate", "run", "count=60", f"classifier={classifier.cache_path(single)}", "out=other")
    assert named.code == 0, named.err
    assert json.loads(Path("other/evaluation.json").read_text(encoding="utf-8")) == found
    refused = gantrain("evaluate", "run", "metrics=classes")
    assert (refused.code, "stacked_mnist has other metrics" in refused.err) == (2, True)
    assert len(encode_plots(compare([Path("run")]))["classes"]["svg"]) < 100_000
