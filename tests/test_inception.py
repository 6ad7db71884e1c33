"""The Inception network: whole weights or one sentence, what it sees, and the numbers that come from it.

The published weights are not here; a network of the same shape with random ones takes their place, and its checksum
that of the published file. What the true network sees is torch-fidelity's to test.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Answer
from PIL import Image
from scipy import special, stats
from support.tolerance import assert_close_to_largest
from torch import Tensor, nn

from gantrain import data
from gantrain.errors import ConfigError, DataError
from gantrain.evaluation import classes, distances, features, inception, metrics
from gantrain.evaluation.classifier_training import ClassifierTraining

pytest.importorskip("torch_fidelity", reason="needs gantrain[inception]")
from torch_fidelity import metric_fid, metric_isc, metric_kid
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

CPU = torch.device("cpu")
COUNT = 20


class Random(FeatureExtractorInceptionV3):
    """The network with weights that keep the size of what passes through."""

    def __init__(self) -> None:
        torch.save({}, nothing := io.BytesIO())
        nothing.seek(0)
        super().__init__("random", ["2048", "logits_unbiased"], feature_extractor_weights_path=nothing)

    def load_state_dict(self, state: Any, *_: Any, **__: Any) -> None:
        torch.manual_seed(0)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.02)


@pytest.fixture(scope="module")
def random_network() -> Random:
    return Random()


@pytest.fixture(scope="module")
def file(random_network: Random, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The random weights, in the place of the published file."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(random_network.state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        published(patch, path)
        patch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)  # a sixteenth of the work of 299
        yield path


def published(patch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the file at `path` be what was published."""
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    patch.setattr(inception, "SHA256", checksum)
    patch.setattr(inception, "URL", path.as_uri())


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without weights, and classifiers that are trained at once."""
    monkeypatch.setattr(ClassifierTraining, "default", lambda *_: ClassifierTraining(width=2, epochs=1))
    monkeypatch.setattr(features, "SIGNIFICANCE", 1)  # its images are random
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gantrain" / "inception"


def images(count: int, channels: int = 3, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 8, 8), generator=random, dtype=torch.uint8)


def features_of(path: Path, shown: Tensor) -> tuple[Tensor, Tensor]:
    return inception.compute_features(inception.load_inception(path, CPU), shown)


# The file


def test_the_published_file_is_the_one_that_torch_fidelity_names() -> None:
    assert inception.URL == URL_INCEPTION_V3
    assert URL_INCEPTION_V3.endswith(f"/{inception.FILE_NAME}")
    prefix = inception.FILE_NAME.removesuffix(".pth").rpartition("-")[2]
    assert inception.SHA256.startswith(prefix)
    assert len(inception.SHA256) == 64


def test_missing_weights_are_downloaded_to_their_place_once(
    own_cache: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own_cache / inception.FILE_NAME
    for announced in (True, False):
        inception.load_inception(None, CPU)
        said = f"downloading the weights of the Inception network to {own_cache}"
        assert (said in capsys.readouterr().out) == announced
    assert path.read_bytes() == file.read_bytes()
    assert sorted(each.name for each in own_cache.iterdir() if each.suffix != ".lock") == [path.name]


@pytest.mark.parametrize("place", ["cache/gantrain/inception", "cache/torch/hub/checkpoints", "hub/hub/checkpoints"])
def test_weights_that_are_there_are_found(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if place.startswith("hub"):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    (tmp_path / place).mkdir(parents=True)
    there = tmp_path / place / inception.FILE_NAME
    assert inception.find_weights() == inception.cache_path()
    there.touch()
    assert inception.find_weights() == there


@pytest.mark.parametrize("trouble", ["offline", "other weights", "flipped bit", "not there", "empty", "a folder"])
def test_weights_that_cannot_be_had_are_one_message(
    trouble: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, gantrain: Callable[..., Answer]
) -> None:
    (tmp_path / "published.pth").write_bytes(b"whole" * 100)
    published(monkeypatch, tmp_path / "published.pth")
    named = tmp_path / "named.pth"
    if trouble == "offline":
        monkeypatch.setattr(inception, "URL", (tmp_path / "nothing").as_uri())
    elif trouble == "other weights":
        (tmp_path / "published.pth").write_bytes(b"other" * 100)
    elif trouble == "flipped bit":
        named.write_bytes(b"whole" * 99 + b"whold")
    elif trouble == "empty":
        named.touch()
    elif trouble == "a folder":
        named.mkdir()
    given = [] if trouble in ("offline", "other weights") else [f"inception={named}"]
    np.save("samples.npy", np.zeros((30, 8, 8), np.uint8))
    answer = gantrain("evaluate", "samples.npy", "dataset=digits", "features=inception", *given)
    assert answer.code == 3
    assert len(answer.err.splitlines()) <= 5
    assert "Traceback" not in answer.err
    for words in (inception.URL, inception.SHA256, str(inception.cache_path()), "inception=FILE"):
        assert words in answer.err
    assert not list(own_cache.glob("*.p*"))


def test_without_torch_fidelity_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"pip install 'gantrain\[inception\]'"):
        inception.load_inception(None, CPU)


def test_a_file_that_wants_to_run_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it were the published one."""

    class Attack:
        def __reduce__(self) -> tuple:
            return Path.mkdir, (tmp_path / "attacked",)

    torch.save({"Conv2d_1a_3x3.conv.weight": Attack()}, tmp_path / "weights.pth")
    published(monkeypatch, tmp_path / "weights.pth")
    with pytest.raises(DataError):
        inception.load_inception(tmp_path / "weights.pth", CPU)
    assert not (tmp_path / "attacked").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    published(monkeypatch, tmp_path / "weights.pth")
    with pytest.raises(DataError, match="state_dict"):
        inception.load_inception(tmp_path / "weights.pth", CPU)


# What it sees


def test_an_image_is_seen_as_torch_fidelity_sees_it_whatever_stands_beside_it(
    file: Path, random_network: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = images(5)
    features, probabilities = features_of(file, shown)
    direct, logits = random_network(shown)
    assert_close_to_largest(features, direct)
    assert_close_to_largest(probabilities, special.softmax(logits.double().numpy(), axis=1))
    monkeypatch.setattr(inception, "BATCH", 2)
    steps: list[tuple[int, int | None]] = []
    order = torch.tensor([3, 1, 4, 0, 2])

    @contextmanager
    def progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
        yield lambda *step: steps.append(step)

    others, _ = inception.compute_features(inception.load_inception(file, CPU), shown[order], progress)
    assert_close_to_largest(others, features[order])
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert float((features[0] - features[1]).abs().max()) > 1e-3
    grey = images(2, channels=1)
    assert torch.equal(features_of(file, grey)[0], features_of(file, grey.repeat(1, 3, 1, 1))[0])


# The numbers


def test_evaluation_through_it(file: Path, gantrain: Callable[..., Answer], random_network: Random) -> None:
    digits = data.load("digits")
    assert isinstance(digits, data.Images)
    samples = digits.train[:COUNT]
    np.savez("samples.npz", samples.numpy())
    arguments = ["dataset=digits", f"count={COUNT}", "features=inception", f"inception={file}", "reference=false"]
    answer = gantrain("evaluate", "samples.npz", *arguments)
    assert answer.code == 0, answer.err
    assert "features: the Inception network, inception-2015-12-05" in answer.out
    assert "classifier" not in answer.out
    found = json.loads(Path("evaluation/evaluation.json").read_text(encoding="utf-8"))
    version = importlib.metadata.version("torch-fidelity")
    assert found["features"] == {
        "name": "inception",
        "network": "inception-2015-12-05",
        "library": f"torch-fidelity {version}",
        "checksum": hashlib.sha256(file.read_bytes()).hexdigest()[:16],
    }
    assert found["class_histogram"] == {"data": {}, "samples": {}}
    assert set(found["metrics"]) == {
        *("quality/fid_inception", "quality/kid_inception", "quality/kid_inception_error", "quality/inception_score"),
        *("quality/precision", "quality/density", "diversity/recall", "diversity/coverage"),
        *("diversity/pairwise_distance", "diversity/support_size", "diversity/support_ratio"),
    }
    (x, _), (y, logits) = (random_network(part.repeat(1, 3, 1, 1)) for part in (digits.held[:COUNT], samples))
    x, y = x.double(), y.double()
    # The trace of the root from the centred points alone, whose products have the same singular values.
    a, b = ((part - part.mean(0)).numpy() / (COUNT - 1) ** 0.5 for part in (x, y))
    between_means = float((x.mean(0) - y.mean(0)).square().sum())
    fid = between_means + (a**2).sum() + (b**2).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")
    assert found["metrics"]["quality/fid_inception"] == pytest.approx(fid, rel=1e-4)
    p = logits.double().softmax(1).numpy()
    score = np.exp(np.mean([stats.entropy(row, p.mean(0)) for row in p]))
    assert found["metrics"]["quality/inception_score"] == pytest.approx(score, rel=1e-5)
    around = distances.compute_prdc(x, y)
    assert found["metrics"]["quality/precision"] == pytest.approx(around.precision, abs=0.051)
    assert found["metrics"]["diversity/coverage"] == pytest.approx(around.coverage, abs=0.051)
    assert not list(Path().rglob("classifiers"))


@pytest.fixture
def coloured(tmp_path: Path) -> list[str]:
    """A command that evaluates coloured images of two classes, all of them real."""
    for number, image in enumerate(images(60).permute(0, 2, 3, 1).numpy()):
        path = tmp_path / "photographs" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    np.save(tmp_path / "samples.npy", images(COUNT, seed=1).permute(0, 2, 3, 1).numpy())
    data = ["dataset=folder", "dataset.path=photographs", "dataset.size=8", "dataset.held_out=20", "reference=false"]
    return ["evaluate", "samples.npy", *data]


def found(gantrain: Callable[..., Answer], *arguments: str) -> dict[str, Any]:
    """What an evaluation wrote."""
    answer = gantrain(*arguments)
    assert answer.code == 0, answer.err
    document = json.loads(Path("evaluation/evaluation.json").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def test_it_is_used_only_if_it_is_asked_for(file: Path, coloured: list[str], gantrain: Callable[..., Answer]) -> None:
    there = inception.cache_path()
    there.parent.mkdir(parents=True)
    there.write_bytes(file.read_bytes())
    for choice, network in {
        "features=auto": "classifier",
        "features=inception": "inception",
        f"inception={file}": "inception",
    }.items():
        assert found(gantrain, *coloured, "metrics=fid", choice)["features"]["name"] == network
    answer = gantrain(*coloured, f"inception={file}", "features=classifier")
    assert (answer.code, "give one" in answer.err) == (2, True)


def number_names(chosen: Iterable[str], network: str) -> set[str]:
    return {number for name in chosen for number in metrics.IMAGES[name].names(network)}


def test_classes_are_told_by_a_classifier(file: Path, coloured: list[str], gantrain: Callable[..., Answer]) -> None:
    """If they are asked for, or a classifier is given; distances still come from Inception."""
    asked = found(gantrain, *coloured, f"inception={file}", "metrics=fid,classes")
    alone = found(gantrain, *coloured, "features=classifier")
    named = found(
        gantrain, *coloured, f"inception={file}", f"classifier={next(Path('cache').rglob('classifiers/*.pt'))}"
    )
    whole = number_names(metrics.IMAGES, "inception")
    for document, numbers in (
        (asked, number_names(["fid", "classes"], "inception")),
        (named, whole),
    ):
        assert set(document["metrics"]) == numbers
        assert document["features"]["classes"] == alone["features"]
        assert document["class_histogram"] == alone["class_histogram"]
        for number in metrics.CLASSES.directions:
            assert document["metrics"][number] == alone["metrics"][number]
    assert sum(alone["class_histogram"]["samples"].values()) == COUNT
    by_itself = found(gantrain, *coloured, f"inception={file}")
    assert set(by_itself["metrics"]) == whole - set(metrics.CLASSES.directions)


def test_a_run_uses_it_while_training_and_after_it_is_resumed(
    file: Path, coloured: list[str], gantrain: Callable[..., Answer]
) -> None:
    photographs = [text for text in coloured if text.startswith("dataset")]
    small = ["architecture=conv8", "train.images=20", "train.batch_size=10", "train.held_out_images=20"]
    asked = ["evaluate.every_images=20", "evaluate.count=20", "evaluate.features=inception"]
    followed = "best.metric=diversity/class_tv"  # so that a classifier is needed too
    answer = gantrain("train", "run_dir=run", *photographs, *small, *asked, followed)
    assert answer.code == 0, answer.err
    assert inception.cache_path().read_bytes() == file.read_bytes()  # downloaded
    assert Path("run/checkpoints/best.pt").exists()
    for images in (20, 40):
        document = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))
        assert (document["images"], document["features"]["name"]) == (images, "inception")
        assert set(document["metrics"]) == number_names(metrics.IMAGES, "inception")
        assert gantrain("resume", "run", "train.images=40").code == 0


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_on_the_same_features_torch_fidelity_has_the_same_numbers(shift: float) -> None:
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(400, 12, generator=random, dtype=torch.float64) for _ in range(2))
    y = y * 1.2 + shift
    statistics = [metric_fid.fid_features_to_statistics(each) for each in (x, y)]
    fid = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert distances.frechet_distance(x, y) == pytest.approx(fid, rel=1e-8)
    whole = {"kid_subsets": 1, "kid_subset_size": 400, "verbose": False}  # one subset of all points
    kid = metric_kid.kid_features_to_metric(x, y, **whole)["kernel_inception_distance_mean"]
    assert distances.kernel_distance(x, y)[0] == pytest.approx(kid, rel=1e-8)
    score = metric_isc.isc_features_to_metric(3 * x, splits=1)["inception_score_mean"]
    assert classes.inception_score((3 * x).softmax(1)) == pytest.approx(score, rel=1e-8)
