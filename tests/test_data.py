"""The datasets: the stream keyed by the clock, what is held out, every reader on small files in the real formats."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import io
import itertools
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from scipy import integrate, stats
from support.datasets import (
    NOWHERE,
    cifar_members,
    encoded,
    pixels,
    place,
    place_all,
    publish,
    publish_archive,
    publish_celeba,
    publish_idx,
    write_image,
)
from support.waiting import PATIENCE_SECONDS
from torchvision import datasets

from gantrain import data
from gantrain.data import decoding, fetching, folder, mixtures, published
from gantrain.data.images import Images
from gantrain.errors import ConfigError, DataError, MemoryExhaustedError, StorageError

CONF = Path(__file__).parents[1] / "conf" / "dataset"
DENSITIES = sorted(data.DENSITIES)


def numbered(count: int, seed: int = 0, flip: bool = False) -> Images:
    """Images whose pixels tell their index."""
    train = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1).expand(count, 1, 2, 2).contiguous()
    return Images("numbered", "numbered", train, train[:0], seed=seed, flip=flip)


def indices(dataset: Images, clock: int, batch_size: int) -> list[int]:
    return (dataset.batch(clock, batch_size).images[:, 0, 0, 0] * 255).round().int().tolist()


# The catalogue


def test_names_are_known_without_the_libraries_that_read() -> None:
    code = (
        "import json, sys, gantrain.data as d;"
        "heavy = [m for m in ('torch', 'torchvision', 'numpy', 'PIL', 'scipy', 'filelock') if m in sys.modules];"
        "print(json.dumps([sorted(d.DATASETS), heavy]))"
    )
    names, heavy = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert heavy == []
    assert names == sorted(path.stem for path in CONF.glob("*.yaml"))


@pytest.mark.parametrize("name", sorted(data.DATASETS))
def test_configuration_and_code_agree(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    assert text.startswith("# @package _global_\n# ")
    assert config["dataset"].pop("name") == name
    config["dataset"].pop("r1_weight", None)  # of a regularizer
    if name in data.IMAGES:
        source = data.IMAGES[name]
        assert config["dataset"] == {"flip": source.flip, "size": source.size}
    else:
        assert data.DatasetSettings(name).shapes == ((config["latent"]["size"],),)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "cifar01"}, "cifar10"),
        ({"name": "digits", "on_bad": "ignore"}, "skip"),
        ({"name": "digits", "size": 0}, "dataset.size=0"),
        ({"name": "digits", "held_out": -1}, "dataset.held_out=-1"),
        ({"name": "digits", "path": "x"}, "dataset=folder"),
        ({"name": "folder"}, "dataset.path"),
        ({"name": "array"}, "dataset.path=X.npy"),
        ({"name": "array", "path": "x", "labels": "folders"}, "dataset=folder, not"),
        ({"name": "folder", "path": "x", "labels": "folder"}, "folders"),
        ({"name": "digits", "labels": "none"}, "dataset=folder"),
        ({"name": "folder", "path": "x", "fit": "fill"}, "stretch"),
        ({"name": "ring", "fit": "pad"}, "dataset=folder"),
        ({"name": "folder", "path": "x", "range": "full"}, "auto"),
        ({"name": "folder", "path": "x", "range": [4095, 0]}, "BLACK below WHITE"),
        ({"name": "folder", "path": "x", "range": [0, 1, 2]}, "BLACK,WHITE"),
        ({"name": "folder", "path": "x", "range": [0, float("inf")]}, "BLACK,WHITE"),
        ({"name": "cifar10", "range": [0, 1]}, "dataset=folder"),
        ({"name": "ring", "means": [1.0]}, "mixture1d"),
        ({"name": "mixture1d", "means": [1.0]}, "2, 1 and 2"),
        ({"name": "mixture1d", "weights": []}, "0, 2 and 2"),
        ({"name": "mixture1d", "weights": [0.5, 0.3]}, r"sum to 0.8 and must .* dataset.weights=\[0.625,0.375\]"),
        ({"name": "mixture1d", "stds": [1.0, 0.0]}, "positive"),
        ({"name": "mixture1d", "means": [1.0, float("nan")]}, "finite"),
    ],
)
def test_what_no_dataset_could_have_is_refused(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        data.load(**options)


# The stream


def test_every_epoch_shows_every_image_once_and_joins_the_next_without_a_gap() -> None:
    dataset = numbered(10)
    stream = indices(dataset, 0, 40)
    epochs = [stream[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert indices(numbered(10, seed=1), 0, 40) != stream


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 23])
def test_a_batch_depends_on_the_clock_alone(batch_size: int) -> None:
    stream = indices(numbered(10), 0, 70)
    for clock in (0, 4, 9, 10, 17, 35):
        assert indices(numbered(10), clock, batch_size) == stream[clock : clock + batch_size]
    dataset = numbered(10)
    walked = [index for clock in range(0, 70 - batch_size, batch_size) for index in indices(dataset, clock, batch_size)]
    assert walked == stream[: len(walked)]


def test_half_of_the_images_are_mirrored_by_the_clock_and_no_pixel_is_changed() -> None:
    train = torch.from_numpy(pixels(400, 3, 4, 4))
    plain = Images("a", "a", train, train[:0])
    flipped = Images("a", "a", train, train[:0], flip=True)
    before, after = plain.batch(400, 400).images, flipped.batch(400, 400).images
    mirrored = (after == before.flip(-1)).flatten(1).all(1)
    assert ((after == before).flatten(1).all(1) ^ mirrored).all()
    assert 160 < mirrored.sum() < 240
    assert torch.equal(after, Images("a", "a", train, train[:0], flip=True).batch(400, 400).images)
    assert torch.equal(flipped.held_out(5), train[:5] / 255)


# Held out


def test_a_tenth_of_the_digits_is_held_out_by_content_for_every_seed() -> None:
    first, second = data.load("digits"), data.load("digits", seed=7)
    assert (first.size, first.shape, first.has_held_out) == (1797 - 179, (1, 8, 8), True)
    assert torch.equal(first.held_out(500), second.held_out(500))
    assert len(first.held_out(500)) == 179
    assert first.fingerprint == second.fingerprint

    def identities(images: torch.Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    batch = first.batch(0, 1618).images
    assert not identities(first.held_out(179)) & identities(batch)
    assert (batch.dtype, batch.min(), batch.max()) == (torch.float32, 0, 1)


def test_digits_are_scikit_learns() -> None:
    splits = published.read_digits(Path(), 8, "error")
    assert splits.labels is not None
    arrays = (splits.train.numpy(), splits.labels.train.numpy())
    found = [hashlib.md5(np.ascontiguousarray(array)).hexdigest() for array in arrays]
    assert found == ["3882073453642be58b6586ccbbbf7eb2", "1041ea9b393a866c07fc3ca1c2bb06cd"]
    sklearn = pytest.importorskip("sklearn.datasets")
    known = sklearn.load_digits()
    assert np.array_equal(arrays[0][:, 0], np.round(known.images * 255 / 16))
    assert np.array_equal(arrays[1], known.target)


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("digits", "d38c86fe4b3ab03b"),
        ("mixture1d", "203b3cecf615c9b6"),
        ("ring", "6fbcc6428e959c72"),
        ("grid25", "ba531432d265f368"),
    ],
)
def test_a_run_of_an_earlier_version_finds_its_data_unchanged(name: str, fingerprint: str) -> None:
    assert data.load(name).fingerprint == fingerprint


def test_held_out_can_be_chosen_or_turned_off() -> None:
    assert data.load("digits", held_out=5).size == 1792
    without = data.load("digits", held_out=0)
    assert (without.size, without.has_held_out) == (1797, False)
    assert len(without.held_out(3)) == 3
    with pytest.raises(DataError, match="1797"):
        data.load("digits", held_out=1797)


def test_resizing_keeps_the_picture() -> None:
    assert data.load("digits", size=16).shape == (1, 16, 16)
    small, large = (data.load("digits", size=size).held_out(50) for size in (8, 32))
    back = torch.nn.functional.avg_pool2d(large, 4)
    assert (small - back).abs().mean() < 0.05


# Densities


@pytest.mark.parametrize("name", DENSITIES)
def test_draws_have_the_moments_and_the_masses_of_the_mixture(name: str) -> None:
    density = data.load(name)
    weights, means, stds = (np.array(part) for part in density.mixture)
    draws = density.batch(0, 200_000).images.double().numpy()
    mean = weights @ means
    variance = weights @ (means**2 + stds[:, None] ** 2) - mean**2
    np.testing.assert_allclose(draws.mean(0), mean, atol=4 * np.sqrt(variance.max() / 200_000))
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.02)
    nearest = ((draws[:, None] - means) ** 2 / stds[:, None] ** 2).sum(2).argmin(1)
    shares = np.bincount(nearest, minlength=len(weights)) / len(draws)
    np.testing.assert_allclose(shares, weights, atol=0.01)


@pytest.mark.parametrize("name", DENSITIES)
def test_log_density_equals_scipys(name: str) -> None:
    density = data.load(name)
    x = density.batch(0, 300).images.double()
    dimension = x.shape[1]
    parts = [
        weight * stats.multivariate_normal(mean, std**2 * np.eye(dimension)).pdf(x.numpy())
        for weight, mean, std in zip(*density.mixture, strict=True)
    ]
    np.testing.assert_allclose(density.log_density(x), np.log(sum(parts)), rtol=1e-9)
    assert torch.isfinite(density.log_density(torch.full((1, dimension), 1e3))).all()


def test_a_mixture_of_ones_own_is_normalised() -> None:
    density = data.load("mixture1d", weights=[0.25, 0.5, 0.25], means=[-1, 0, 3], stds=[0.5, 1, 2])
    total, _ = integrate.quad(lambda x: density.log_density(torch.tensor([[x]], dtype=torch.float64)).exp(), -30, 30)
    assert total == pytest.approx(1)
    assert density.fingerprint != data.load("mixture1d").fingerprint


def test_protocols_of_the_field() -> None:
    ring, grid = mixtures.ring(), mixtures.grid25()
    assert np.hypot(*np.array(ring.means).T) == pytest.approx([2.0] * 8)
    assert set(ring.stds) == {0.02}
    assert set(np.unique(grid.means)) == {-4, -2, 0, 2, 4}
    assert (len(set(grid.means)), set(grid.stds)) == (25, {0.05})


def test_a_mixture_on_the_line_knows_its_moments_and_masses() -> None:
    mixture = mixtures.mixture1d([1, 2, 1], [-1, 0, 3], [0.5, 1, 2])
    draws = mixture.sample(200_000, torch.Generator().manual_seed(0))[:, 0].double()
    assert mixture.mean == pytest.approx(draws.mean().item(), abs=0.02)
    assert mixture.std == pytest.approx(draws.std().item(), rel=0.01)
    assert mixture.mass(-1, 2) == pytest.approx(((draws > -1) & (draws < 2)).double().mean().item(), abs=0.01)
    exact = np.dot([0.25, 0.5, 0.25], np.subtract(*(stats.norm.cdf(x, [-1, 0, 3], [0.5, 1, 2]) for x in (2, -1))))
    assert mixture.mass(-1, 2) == pytest.approx(exact, abs=1e-15)
    unit = mixture.rescaled(mixture.mean, mixture.std)
    assert (unit.mean, unit.std) == pytest.approx((0, 1))
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    expected = unit.log_density((x - mixture.mean) / mixture.std) - math.log(mixture.std)
    np.testing.assert_allclose(mixture.log_density(x), expected)
    np.testing.assert_allclose(mixture.log_density(x[:, None]), expected)
    with pytest.raises(ValueError, match="unpack"):
        _ = mixtures.ring().mean


def test_draws_are_keyed_by_seed_clock_and_stream() -> None:
    one, same, other = data.load("ring"), data.load("ring"), data.load("ring", seed=1)
    assert torch.equal(one.batch(100, 10).images, same.batch(100, 10).images)
    assert torch.equal(one.held_out(10), same.held_out(10))
    for different in (one.batch(110, 10).images, other.batch(100, 10).images, one.held_out(10)):
        assert not torch.equal(one.batch(100, 10).images, different)
    assert (one.size, one.shape, one.has_held_out) == (None, (2,), True)


# Folders and zips of images


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    root = tmp_path / "photographs"
    for index in range(12):
        write_image(root / f"class{index % 3}" / f"{index}.png", pixels(8, 8, 3, seed=index))
    return root


def zipped(root: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.png"), reverse=True):
            archive.write(file, file.relative_to(root))
    return path


def test_a_folder_its_zip_and_a_copy_in_another_order_are_the_same_dataset(photographs: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for index, file in enumerate(sorted(photographs.rglob("*.png"), reverse=True)):
        (flat / f"{index}.dat").write_bytes(file.read_bytes())
    sources = [photographs, zipped(photographs, tmp_path / "p.zip"), flat]
    datasets = [data.load("folder", path=source, size=8, flip=False) for source in sources]
    assert len({dataset.fingerprint for dataset in datasets}) == 1
    for dataset in datasets:
        assert (dataset.size, dataset.shape, dataset.skipped) == (11, (3, 8, 8), 0)
        assert torch.equal(dataset.batch(5, 20).images, datasets[0].batch(5, 20).images)
        assert torch.equal(dataset.held_out(1), datasets[0].held_out(1))


def filled(root: Path, counts: dict[str, int]) -> Path:
    """A folder with so many different images in each subfolder."""
    seeds = itertools.count()
    for name, count in counts.items():
        for index in range(count):
            write_image(root / name / f"{index}.png", pixels(4, 4, 3, seed=next(seeds)))
    return root


def class_counts(images: Images) -> dict[str, tuple[int, int]]:
    """Training and held-out images of each class."""
    labels = images.labels()
    return {
        name: tuple(int((part == number).sum()) for part in (labels.train, labels.test))
        for number, name in enumerate(labels.classes)
    }


@pytest.mark.parametrize(
    ("train", "held", "unused"),
    [
        ("train", "val", None),
        ("Training", "TEST", "valid"),
        ("train", "validation", "extra"),
        ("in/train", "in/test", None),
    ],
)
def test_folders_of_splits_are_the_splits_and_the_classes_lie_below(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], train: str, held: str, unused: str | None
) -> None:
    root = filled(tmp_path, {f"{train}/cat": 6, f"{train}/dog": 5, f"{held}/cat": 2, f"{held}/dog": 3})
    if unused is not None:
        filled(root, {unused: 4})
    images = data.load("folder", path=root, size=4, flip=False)
    said = capsys.readouterr().out
    assert f"{Path(train).name}/ is trained on (11 images)" in said
    assert f"{Path(held).name}/ is held out (5)" in said
    assert (f"{unused}/ is not used" in said) == (unused is not None)
    assert class_counts(images) == {"cat": (6, 2), "dog": (5, 3)}
    for folder_name, found in ((train, images.train), (held, images.held)):
        for name, number in (("cat", 0), ("dog", 1)):
            labels = images.labels().train if folder_name == train else images.labels().test
            wanted = {np.asarray(Image.open(file)).tobytes() for file in (root / folder_name / name).glob("*.png")}
            chosen = found[labels == number].permute(0, 2, 3, 1).contiguous()
            assert {image.numpy().tobytes() for image in chosen} == wanted
    assert len(data.load("folder", path=root, size=4, held_out=2).held) == 2
    renamed = shutil.copytree(root, tmp_path.parent / f"{tmp_path.name} renamed")
    for number, file in enumerate(sorted(renamed.rglob("*.png"), reverse=True)):
        file.rename(file.with_name(f"new {number}.png"))
    other = data.load("folder", path=renamed, size=4, flip=False)
    assert torch.equal(other.batch(0, 11).images, images.batch(0, 11).images)


def test_an_image_for_which_memory_runs_out_is_no_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr("gantrain.data.decoding.open_image", refuse)
    with pytest.raises(MemoryError):
        data.load("folder", path=filled(tmp_path, {"train": 5}), size=4, on_bad="skip")


def test_a_damaged_file_of_a_split_is_left_out_of_it(tmp_path: Path) -> None:
    root = filled(tmp_path, {"train": 5, "val": 3})
    (root / "train" / "2.png").write_bytes(b"")
    images = data.load("folder", path=root, size=4, on_bad="skip")
    assert (images.size, len(images.held), images.skipped, images.labels()) == (4, 3, 1, None)


@pytest.mark.parametrize(
    ("counts", "is_numbering"),
    [
        ({"00000": 4, "00001": 4, "00002": 2}, True),
        ({"00000": 4, "00001": 4, "00002": 4}, True),
        ({"0": 4, "1": 4}, True),
        ({"0": 4, "1": 3}, False),
        ({"00000": 4, "00001": 3, "00002": 4}, False),
        ({"a": 4, "b": 4}, False),
    ],
)
def test_numbered_folders_of_equal_size_are_no_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], counts: dict[str, int], is_numbering: bool
) -> None:
    root = filled(tmp_path, counts)
    assert (data.load("folder", path=root, size=4).labels() is None) == is_numbering
    assert ("dataset.labels=folders" in capsys.readouterr().out) == is_numbering
    labels = data.load("folder", path=root, size=4, labels="folders", held_out=0).labels()
    assert dict(zip(labels.classes, np.bincount(labels.train).tolist(), strict=True)) == counts
    assert data.load("folder", path=root, size=4, labels="none").labels() is None
    assert capsys.readouterr().out == ""


def test_the_labels_of_stylegans_dataset_json_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = filled(tmp_path / "in", {"00000": 4, "00001": 4})
    names = [f"0000{index // 4}/{index % 4}.png" for index in range(8)]
    listing = root / "dataset.json"
    listing.write_text(json.dumps({"labels": [[name, 3 + 2 * (index % 2)] for index, name in enumerate(names)]}))
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for file in [*names, "dataset.json"]:
            archive.write(root / file, file)
    for path in (root, tmp_path / "in.zip"):
        images = data.load("folder", path=path, size=4, flip=False, held_out=0)
        labels = images.labels()
        assert (labels.classes, images.size, images.skipped) == (("3", "5"), 8, 0)
        odd = {np.asarray(Image.open(root / name)).tobytes() for name in names[1::2]}
        chosen = images.train[labels.train == 1].permute(0, 2, 3, 1).contiguous()
        assert {image.numpy().tobytes() for image in chosen} == odd
    listing.write_text(json.dumps({"labels": [[name, 0] for name in names[:6]]}))
    capsys.readouterr()
    assert data.load("folder", path=root, size=4, held_out=0).labels().train.tolist().count(-1) == 2
    assert "2 images have no class in dataset.json" in capsys.readouterr().out
    listing.write_text(json.dumps({"labels": [[name, index - 1] for index, name in enumerate(names[:6])]}))
    labels = data.load("folder", path=root, size=4, held_out=0).labels()
    assert (labels.classes, labels.train.tolist().count(-1)) == (("0", "1", "2", "3", "4"), 3), "-1 is no class"
    assert "3 images have no class in dataset.json" in capsys.readouterr().out
    listing.write_text('{"labels": null}')
    assert data.load("folder", path=root, size=4).labels() is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '{"labels": 5}', '{"labels": [["a.png", [0.5]]]}', '{"labels": {"a": 1}}', "[" * 10**5]
)
def test_another_dataset_json_is_named(tmp_path: Path, text: str) -> None:
    (filled(tmp_path, {"a": 2}) / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json is not of the form .* remove it"):
        data.load("folder", path=tmp_path, size=4)
    assert data.load("folder", path=tmp_path, size=4, labels="none").size == 2
    for entries in ('["other.png", 1]', '["a/0.png", -1], ["a/1.png", -1]'):
        (tmp_path / "dataset.json").write_text(f'{{"labels": [{entries}]}}')
        with pytest.raises(DataError, match="names none of the 2 images"):
            data.load("folder", path=tmp_path, size=4)


def alter(path: Path, start: bytes, offset: int, new: bytes) -> None:
    """Write bytes into a file, so many bytes after the last place where it has `start`."""
    content = bytearray(path.read_bytes())
    place = content.rindex(start) + offset
    content[place : place + len(new)] = new
    path.write_bytes(content)


def test_a_damaged_listing_in_a_zip_is_named(tmp_path: Path) -> None:
    for method, new in ((zipfile.ZIP_STORED, b"\1"), (zipfile.ZIP_DEFLATED, b"\xff" * 9)):  # checksum, and deflate
        path = zipped(filled(tmp_path / "in", {"a": 2}), tmp_path / "in.zip")
        with zipfile.ZipFile(path, "a", method) as archive:
            archive.writestr("dataset.json", '{"labels": null}')
        alter(path, b"PK\3\4", 30 + len("dataset.json"), new)
        with pytest.raises(DataError, match=r"dataset\.json cannot be read: .* repair or remove it"):
            data.load("folder", path=path, size=4)
        assert data.load("folder", path=path, size=4, labels="none").size == 2


@pytest.mark.parametrize(("offset", "new"), [(46, b"\xff"), (28, b"\0\0\0\0\6\0")], ids=["no text", "no name"])
def test_a_zip_with_a_damaged_name_is_named(tmp_path: Path, offset: int, new: bytes) -> None:
    with zipfile.ZipFile(path := tmp_path / "in.zip", "w") as archive:
        archive.writestr("é.png", b"x")  # whose 6 bytes can become a comment, so that no name is left
    alter(path, b"PK\1\2", offset, new)
    with pytest.raises(DataError, match=r"in\.zip cannot be read as a folder of images"):
        data.load("folder", path=path, size=4)


def test_the_fingerprint_follows_the_content(photographs: Path) -> None:
    before = data.load("folder", path=photographs, size=8).fingerprint
    write_image(photographs / "class0" / "0.png", pixels(8, 8, 3, seed=99))
    assert data.load("folder", path=photographs, size=8).fingerprint != before
    assert data.load("folder", path=photographs, size=4).fingerprint != before


def test_pixels_of_a_lossless_file_arrive_unchanged(photographs: Path) -> None:
    dataset = data.load("folder", path=photographs, size=8, held_out=0, flip=False, label="mine")
    found = {(image * 255).round().byte().numpy().tobytes() for image in dataset.batch(0, 12).images}
    assert found == {pixels(8, 8, 3, seed=index).transpose(2, 0, 1).tobytes() for index in range(12)}
    assert (dataset.name, dataset.label) == ("folder", "mine")


def test_files_are_sorted_by_the_bytes_of_their_paths(tmp_path: Path) -> None:
    for name in ("b", "a", "ä", "Z", "a/c"):
        write_image(tmp_path / f"{name}.png", pixels(2, 2, 3))
    names = [file.name for file in folder.image_files(tmp_path)]
    assert names == ["Z.png", "a.png", "a/c.png", "b.png", "ä.png"]


def test_grey_files_give_one_channel_and_one_coloured_file_three(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", pixels(8, 8))
    write_image(tmp_path / "b.jpg", np.repeat(pixels(8, 8, 1), 3, axis=2))
    assert data.load("folder", path=tmp_path, held_out=0, size=8).shape == (1, 8, 8)
    write_image(tmp_path / "c.png", pixels(8, 8, 3))
    assert data.load("folder", path=tmp_path, held_out=0, size=8).shape == (3, 8, 8)


def test_alpha_is_laid_over_white() -> None:
    image = Image.new("RGBA", (1, 1), (200, 0, 0, 51))
    white, red = 255 * 0.8, 200 * 0.2
    np.testing.assert_allclose(decoding.decode(encoded(image), 1).ravel(), [white + red, white, white], atol=1)
    clear = Image.new("P", (1, 1), 0)
    clear.putpalette([10, 20, 30])
    assert decoding.decode(encoded(clear, transparency=0), 1).ravel().tolist() == [255] * 3
    assert decoding.decode(encoded(clear), 1).ravel().tolist() == [10, 20, 30]
    assert decoding.decode(encoded(Image.new("LA", (1, 1), (0, 0))), 1).ravel().tolist() == [255] * 3


def test_the_exif_orientation_is_applied() -> None:
    array = pixels(4, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise
    found = decoding.decode(encoded(Image.fromarray(array), exif=exif.tobytes()), 4)
    assert np.array_equal(found.transpose(1, 2, 0), np.rot90(array, k=-1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_format_is_cropped_to_its_central_square(kind: str) -> None:
    array = np.zeros((20, 40, 3), np.uint8)
    array[:, 10:30] = 200
    found = decoding.decode(encoded(Image.fromarray(array), kind, quality=100), 10)
    assert found.shape == (3, 10, 10)
    assert np.abs(found[:, :, 1:9].astype(int) - 200).max() < 8


@pytest.mark.parametrize(("suffix", "channels"), [("png", 1), ("tiff", 1), ("rgb.png", 3), ("rgb.tiff", 3)])
@pytest.mark.parametrize("limits", ["auto", [0, 4095]])
def test_twelve_bits_in_a_file_of_sixteen_are_said_and_scaled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, channels: int, limits: Any
) -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for number, picture in enumerate([ramp, ramp[::-1]]):
        values = np.stack([picture, picture.T, picture], -1)[..., :channels]
        (tmp_path / f"{number}.{suffix}").write_bytes(deep_file(values, suffix.split(".")[-1]))
    dark = data.load("folder", path=tmp_path, size=64, held_out=0, flip=False)
    said = capsys.readouterr().out
    for words in ("4,095 of 65,535", "17 levels", "dataset.range=[0,4095]", "auto"):
        assert words in said
    assert int(dark.train.max()) in (15, 16)
    bright = data.load("folder", path=tmp_path, size=64, held_out=0, range=limits, flip=False)
    assert capsys.readouterr().out == ""
    wanted = np.round(ramp * (255 / 4095))
    assert sorted(np.unique(bright.train)) == list(range(256))
    assert any(np.array_equal(image[0], wanted) for image in bright.train.numpy())
    if channels == 3:
        assert any(np.array_equal(image, np.stack([wanted, wanted.T, wanted])) for image in bright.train.numpy())


def deep_file(values: np.ndarray, kind: str) -> bytes:
    """A PNG or TIFF of uint16 `[H, W, C]`; Pillow writes none in colour."""
    if values.shape[-1] == 1:
        return encoded(Image.fromarray(values[..., 0]), kind.upper())
    height, width, _ = values.shape
    if kind == "png":
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        ihdr = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
        chunks = [(b"IHDR", ihdr), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        parts = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    pixels = values.astype("<u2").tobytes()
    # (tag, type: 3 short or 4 long, count, value); the three depths lie behind the directory, the pixels behind them.
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 140), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(pixels)), (284, 3, 1, 1)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)
    return head + struct.pack("<3H", 16, 16, 16) + pixels


def test_masks_of_zeros_and_ones_and_floating_point_are_said_and_scaled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks, scan = tmp_path / "masks", tmp_path / "scan"
    for number in range(3):
        write_image(masks / f"{number}.png", pixels(8, 8, seed=number) % 2)
        scan.mkdir(exist_ok=True)
        Image.fromarray(np.float32(pixels(8, 8, seed=number)) - 1000).save(scan / f"{number}.tiff")
    data.load("folder", path=masks, size=8)
    assert "the brightest value is 1 of 255: at 8 bits 2 levels are left" in capsys.readouterr().out
    found = data.load("folder", path=masks, size=8, held_out=0, range="auto").train
    assert found.unique().tolist() == [0, 255]
    with pytest.raises(DataError, match=r"values from −9.* dataset\.range=auto"):
        data.load("folder", path=scan, size=8)
    found = data.load("folder", path=scan, size=8, held_out=0, range=[-1000, -745], flip=False).train
    assert {image.numpy().tobytes() for image in found} == {pixels(8, 8, seed=number).tobytes() for number in range(3)}
    shutil.copy(masks / "0.png", scan)
    with pytest.raises(DataError, match="one depth; the white of these is 1, 255"):
        data.load("folder", path=scan, size=8, range="auto")


def test_what_a_crop_would_lose_is_said_and_can_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures of 96×16 whose content lies at both ends."""
    for number in range(4):
        picture = np.zeros((16, 96, 3), np.uint8)
        picture[:, :16] = 50 * number + 50
        picture[:, -16:] = 255
        write_image(tmp_path / f"{number}.png", picture)
    with pytest.raises(DataError, match=r"4 images in .* all the same\n4 of 4 images lose .*96×16.*dataset\.fit=pad"):
        data.load("folder", path=tmp_path, size=96)
    padded, stretched = (
        data.load("folder", path=tmp_path, size=96, held_out=0, flip=False, fit=fit).train for fit in ("pad", "stretch")
    )
    assert capsys.readouterr().out == ""
    assert padded[:, :, :40].max() == padded[:, :, 56:].max() == 0
    assert sorted(padded[:, 0, 48, 8].tolist()) == sorted(stretched[:, 0, 48, 8].tolist()) == [50, 100, 150, 200]
    assert stretched[:, 0, 0, 95].tolist() == [255] * 4
    write_image(tmp_path / "5.png", pixels(16, 96, 3))
    write_image(tmp_path / "6.png", pixels(60, 90, 3))  # loses a third and no more
    assert data.load("folder", path=tmp_path, size=16, held_out=0).size == 6
    assert "5 of 6 images lose more than a third" in capsys.readouterr().out


@pytest.mark.parametrize("size", [(200, 1), (1, 200)])
def test_the_shorter_side_of_a_padded_image_is_at_least_a_pixel(size: tuple[int, int]) -> None:
    assert (decoding.decode(encoded(Image.new("RGB", size, "white")), 8, fit="pad") == 255).sum() == 3 * 8


def test_no_altered_byte_of_a_png_alters_the_picture_in_silence() -> None:
    steps = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8), np.ones((8, 8), np.uint8))
    png = encoded(Image.fromarray(steps))
    picture = decoding.decode(png, 64)
    for position in range(len(png)):
        altered = bytearray(png)
        altered[position] ^= 1
        try:
            found = decoding.decode(bytes(altered), 64)
        except Exception:  # whatever a decoder raises for damaged bytes
            continue
        assert np.array_equal(found, picture)


def test_images_that_do_not_fit_into_memory_are_told_by_size(photographs: Path) -> None:
    with pytest.raises(MemoryExhaustedError, match=r"lower dataset\.size"):
        data.load("folder", path=photographs, size=10**7, resident="device")


# Arrays


GREY, COLOUR = pixels(12, 8, 8), pixels(12, 3, 8, 8)
ARRAYS: dict[str, tuple[np.ndarray, np.ndarray]] = {  # what is stored, and the images that it stands for
    "channels first": (COLOUR, COLOUR),
    "channels last": (COLOUR.transpose(0, 2, 3, 1), COLOUR),
    "grey": (GREY, GREY[:, None]),
    "grey with a channel": (GREY[..., None], GREY[:, None]),
    "floats": (COLOUR / 255, COLOUR),
    "big-endian floats": ((COLOUR / 255).astype(">f4"), COLOUR),
    "16 bits": (COLOUR.astype(np.uint16) * 257, COLOUR),
    "bool": (GREY > 99, (GREY[:, None] > 99) * np.uint8(255)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_images_in_an_array_are_read_in_every_form(tmp_path: Path, name: str) -> None:
    stored, wanted = ARRAYS[name]
    np.save(tmp_path / "a.npy", stored)
    np.savez(tmp_path / "a.npz", images=stored, labels=np.arange(12))
    for path in ("a.npy", "a.npz", "a.npz:images"):
        images = data.load("array", path=tmp_path / path, size=8, held_out=0, flip=False)
        assert images.shape == wanted.shape[1:]
        assert {image.tobytes() for image in images.train.numpy()} == {image.tobytes() for image in wanted}
    assert data.load("array", path=tmp_path / "a.npy").shape == (wanted.shape[1], 32, 32)


@pytest.mark.parametrize("name", ["A.NPY", "A.NPZ", "A.NPZ:points", "A.CSV"])
def test_the_suffix_of_an_array_may_be_in_capitals(tmp_path: Path, name: str) -> None:
    points = np.arange(60.0).reshape(20, 3)
    np.save(tmp_path / "a.npy", points)
    np.savez(tmp_path / "a.npz", points=points)
    np.savetxt(tmp_path / "a.csv", points, delimiter=",")
    for file in list(tmp_path.iterdir()):
        file.rename(file.with_name(file.name.upper()))
    assert data.load("array", path=tmp_path / name).shape == (3,)
    assert data.DatasetSettings("array", path=tmp_path / name).shapes == ((3,),)


def test_an_array_is_fitted_scaled_and_described_like_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ramp = np.linspace(0, 4095, 3 * 16 * 96).reshape(3, 16, 96).astype(np.uint16)
    path = tmp_path / "a.npy"
    np.save(path, ramp)
    cropped = data.load("array", path=path, size=16, held_out=0, flip=False)
    said = capsys.readouterr().out
    for words in ("4,095 of 65,535", "dataset.range=[0,4095]", "96×16", "dataset.fit=pad"):
        assert words in said
    assert {image.tobytes() for image in cropped.train.numpy()} == {
        image[:, 40:56].tobytes() for image in (ramp >> 8).astype(np.uint8)
    }
    padded = data.load("array", path=path, size=96, held_out=0, flip=False, fit="pad", range="auto").train
    assert capsys.readouterr().out == ""
    assert {image[0, 40:56].numpy().tobytes() for image in padded} == {
        image.tobytes() for image in np.round(ramp * (255 / 4095)).astype(np.uint8)
    }
    assert int(padded[:, :, :40].max()) == int(padded[:, :, 56:].max()) == 0
    assert data.load("array", path=path, size=16, fit="stretch", range="auto").shape == (1, 16, 16)


@pytest.mark.parametrize("kind", ["npy", "csv", "csv with names", "npz", "a line"])
def test_points_in_an_array_are_a_stream_of_epochs(tmp_path: Path, kind: str) -> None:
    points = np.random.default_rng(0).normal(size=(30, 1 if kind == "a line" else 3)).astype(np.float32)
    path = tmp_path / f"p.{'npy' if kind == 'a line' else kind[:3]}"
    if kind.startswith("csv"):
        np.savetxt(path, points, delimiter=",", header="x,y,z" if "names" in kind else "", comments="", fmt="%.9g")
    elif kind == "npz":
        np.savez(path, points=points, weights=np.ones(30))
    else:
        np.save(path, points.squeeze() if kind == "a line" else points)
    dataset = data.load("array", path=path, held_out=5)
    assert data.DatasetSettings("array", path=path).shapes == (dataset.shape,) == (points.shape[1:],)
    assert (dataset.size, dataset.has_held_out, dataset.batch(0, 7).images.dtype) == (25, True, torch.float32)
    found = torch.cat([dataset.batch(0, 25).images, dataset.held_out(9)]).numpy()
    assert sorted(map(tuple, found)) == sorted(map(tuple, points))


def write_refused(folder_path: Path) -> None:
    """Files that `REFUSED` names."""
    np.savez(folder_path / "two.npz", x_train=GREY, x_test=GREY)
    np.savez(folder_path / "moments.npz", mu=np.zeros(8), sigma=np.zeros((8, 8)))
    np.savez(folder_path / "none.npz")
    np.save(folder_path / "shape.npy", np.zeros((4, 8, 8, 8), np.uint8))
    np.save(folder_path / "empty.npy", np.zeros((0, 8, 8), np.uint8))
    np.save(folder_path / "number.npy", np.float64(3))
    np.save(folder_path / "nan.npy", np.full((4, 8, 8), np.nan))
    np.save(folder_path / "large.npy", np.full((4, 2), 1e39))
    np.save(folder_path / "signed.npy", GREY.astype(np.int16) - 100)
    np.save(folder_path / "complex.npy", GREY * 1j)
    np.save(folder_path / "same.npy", np.zeros((4, 8, 8), np.uint8))
    np.save(folder_path / "code.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(folder_path / "code.npz", np.array([{}], dtype=object), allow_pickle=True)
    (folder_path / "cut.npy").write_bytes((folder_path / "signed.npy").read_bytes()[:-9])
    (folder_path / "cut.npz").write_bytes((folder_path / "two.npz").read_bytes()[:-9])
    header = io.BytesIO()
    huge = {"descr": "<f8", "fortran_order": False, "shape": (10, 10**6, 10**6, 3)}
    np.lib.format.write_array_header_1_0(header, huge)
    (folder_path / "huge.npy").write_bytes(header.getvalue() + bytes(99))
    with zipfile.ZipFile(folder_path / "huge.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(99))
    (folder_path / "words.csv").write_text("x,y\n1,two\n")
    (folder_path / "ragged.csv").write_text("1,2\n1,2,3\n")
    for name in ("data.mat", "empty.csv", "images.zip"):
        (folder_path / name).write_bytes(b"")
    (folder_path / "images").mkdir()
    os.mkfifo(folder_path / "pipe.npy")


REFUSED = {
    "two.npz": r"x_train \[12, 8, 8\], x_test .*two\.npz:NAME",
    "two.npz:y": r"no array y; it holds x_train",
    "moments.npz": r"stored moments \(mu, sigma\)",
    "none.npz": "holds nothing",
    "shape.npy": r"uint8 \[4, 8, 8, 8\]; images \[N, C, H, W\]",
    "empty.npy": r"uint8 \[0, 8, 8\]",
    "number.npy": r"float64 \[\]; images",
    "nan.npy": "not finite",
    "large.npy": "not finite in float32",
    "signed.npy": r"values from −100 .*dataset\.range=auto",
    "complex.npy": "complex128",
    "same.npy": "4 images in .* are all the same",
    "code.npy": "no array that can be read",
    "code.npz": "no array that can be read",
    "cut.npy": "no array that can be read",
    "cut.npz": "no array that can be read",
    "huge.npy": "says that 240,000,000,000,000 bytes follow, and 99 do",
    "huge.npz": "says that 240,000,000,000,000 bytes follow, and 99 do",
    "words.csv": "must hold numbers",
    "ragged.csv": "must hold numbers",
    "data.mat": r"give a \.npy, \.npz or \.csv file",
    "pipe.npy": "no file of an array",
    "missing.npy": "does not exist",
    "empty.csv": r"float64 \[0, 1\]; images",
    "images": r"images in it are read by dataset=folder dataset\.path=\S+images",
    "images.zip": "images in it are read by dataset=folder",
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_array_that_cannot_be_trained_on_is_named(tmp_path: Path, name: str) -> None:
    write_refused(tmp_path)
    settings = data.DatasetSettings("array", path=tmp_path / name)
    with suppress(DataError):
        assert settings.shapes  # which a run asks for first
    with pytest.raises(DataError, match=REFUSED[name]) as caught:
        data.load_dataset(settings)
    assert name.split(":")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"), [("x.npy", "dataset=array dataset.path="), ("x.csv", "dataset=array"), ("x.tar.gz", "unpack it")]
)
def test_a_file_that_is_no_folder_of_images_names_the_way(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=words):
        data.load("folder", path=tmp_path / name)


# Published datasets: small files in the real formats, whose checksums replace the published ones


def as_published(images: torch.Tensor) -> set[bytes]:
    return {(image * 255).round().byte().numpy().tobytes() for image in images}


def check_splits(dataset: data.Images, train: np.ndarray, test: np.ndarray) -> None:
    assert (dataset.size, dataset.shape) == (len(train), train.shape[1:])
    assert as_published(dataset.batch(0, len(train)).images) == {image.tobytes() for image in train}
    assert as_published(dataset.held_out(100)) == {image.tobytes() for image in test}
    assert dataset.train.is_contiguous()


@pytest.mark.parametrize("name", published.TORCHVISION)
@pytest.mark.parametrize("packing", ["downloads", "unpacked"])
def test_published_images_arrive_with_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, packing: str
) -> None:
    files, expected = publish(monkeypatch, name)
    place_all(tmp_path, getattr(files, packing))
    images = data.load(name, root=tmp_path, flip=False, size=expected.train.shape[-1])
    check_splits(images, expected.train, expected.test)
    labels = images.labels()
    assert np.array_equal(images.train, expected.train)
    assert labels.train.tolist() == expected.train_labels
    test_labels = {image.tobytes(): label for image, label in zip(expected.test, expected.test_labels, strict=True)}
    assert [test_labels[image.tobytes()] for image in images.held.numpy()] == labels.test.tolist()
    assert (len(set(labels.classes)), images.split) == (100 if name == "cifar100" else 10, "test")
    assert data.load(name, root=tmp_path).shape[1:] == (data.IMAGES[name].size,) * 2
    assert not list(tmp_path.glob(".unpacked*"))


def test_an_archive_that_was_packed_again_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = pixels(20, 28, 28), pixels(6, 28, 28, seed=1)
    files = publish_idx(monkeypatch, "mnist", train, test)
    place_all(tmp_path, {f"{path}.gz": gzip.compress(content, 9) for path, content in files.unpacked.items()})
    check_splits(data.load("mnist", root=tmp_path), train[:, None], test[:, None])
    assert len(data.load("mnist", root=tmp_path, held_out=4).held_out(100)) == 4
    assert not data.load("mnist", root=tmp_path, held_out=0).has_held_out


def test_files_of_old_versions_of_torchvision_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = pixels(20, 28, 28), pixels(6, 28, 28, seed=1)
    place_all(tmp_path, publish_idx(monkeypatch, "mnist", train, test).unpacked)
    (tmp_path / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28), torch.zeros(1)), tmp_path / "MNIST" / "processed" / name)
    check_splits(data.load("mnist", root=tmp_path), train[:, None], test[:, None])


def test_an_archive_that_would_fill_the_disk_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = publish_idx(monkeypatch, "mnist", pixels(20, 28, 28), pixels(6, 28, 28))
    bomb = gzip.compress(bytes(fetching.MAX_UNPACKED_BYTES + 2), 1)
    place_all(tmp_path, files.downloads | {"MNIST/raw/train-images-idx3-ubyte.gz": bomb})
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is incomplete"):
        data.load("mnist", root=tmp_path)


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """CelebA's zip and its partition: four faces for training, one for validation, two for testing."""
    pictures = {f"{index:06}.jpg": pixels(218, 178, 3, seed=index) for index in range(1, 8)}
    listing = "".join(f"{name} {split}\n" for name, split in zip(pictures, "0000122", strict=True)).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in pictures.items():
            archive.writestr(f"img_align_celeba/{name}", encoded(Image.fromarray(array), "PNG"))
    place_all(tmp_path, publish_celeba(monkeypatch, listing, stream.getvalue()).downloads)
    return pictures


def unpack_faces(folder: Path) -> None:
    with zipfile.ZipFile(folder / "img_align_celeba.zip") as archive:
        archive.extractall(folder)


def test_celeba_takes_the_central_square_by_the_published_partition(tmp_path: Path, faces: dict) -> None:
    squares = np.stack([face[20:198].transpose(2, 0, 1) for face in faces.values()])
    check_splits(data.load("celeba", root=tmp_path, flip=False, size=178), squares[:4], squares[5:])
    packed_print = data.load("celeba", root=tmp_path).fingerprint
    unpack_faces(tmp_path / "celeba")
    (tmp_path / "celeba" / "img_align_celeba.zip").unlink()
    unpacked = data.load("celeba", root=tmp_path)
    assert (unpacked.shape, unpacked.fingerprint) == ((3, 64, 64), packed_print)


def test_a_face_that_is_missing_or_damaged_is_named(tmp_path: Path, faces: dict) -> None:
    folder_path = tmp_path / "celeba" / "img_align_celeba"
    unpack_faces(tmp_path / "celeba")
    (folder_path / "000002.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"000002\.jpg"):
        data.load("celeba", root=tmp_path)
    assert data.load("celeba", root=tmp_path, on_bad="skip").skipped == 1
    (folder_path / "000002.jpg").unlink()
    with pytest.raises(DataError, match=r"000002\.jpg"):
        data.load("celeba", root=tmp_path, on_bad="skip")


def test_a_file_of_celeba_that_is_damaged_or_missing_is_named_with_the_way_out(tmp_path: Path, faces: dict) -> None:
    for name in ("img_align_celeba.zip", "list_eval_partition.txt"):
        path = tmp_path / "celeba" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=rf"{name} .*\n.*\n.*dataset\.root"):
            data.load("celeba", root=tmp_path)
        path.unlink()
        with pytest.raises(DataError, match=f"celeba/{name} from {NOWHERE}"):
            data.load("celeba", root=tmp_path)
        path.write_bytes(whole)


# Downloads


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address at which the files of tmp_path/server are."""
    (tmp_path / "server").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "server"))

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def test_missing_files_are_downloaded_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, capfd: pytest.CaptureFixture[str]
) -> None:
    train, test = pixels(20, 28, 28), pixels(6, 28, 28, seed=1)
    files = publish_idx(monkeypatch, "mnist", train, test)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [server])
    for path, content in files.downloads.items():
        place(tmp_path / "server", Path(path).name, content)
    root = tmp_path / "root"
    check_splits(data.load("mnist", root=root), train[:, None], test[:, None])
    assert capfd.readouterr() == ("", "")
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert found == {**files.downloads, **files.unpacked, ".gantrain.lock": b""}
    shutil.rmtree(tmp_path / "server")
    check_splits(data.load("mnist", root=root), train[:, None], test[:, None])


def test_celeba_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faces: dict, server: str) -> None:
    before = data.load("celeba", root=tmp_path).fingerprint
    (tmp_path / "celeba").rename(tmp_path / "server" / "celeba")
    for name in ("CELEBA_PARTITION", "CELEBA_IMAGES"):
        file = getattr(published, name)
        monkeypatch.setattr(published, name, file._replace(url=server + file.path))
    assert data.load("celeba", root=tmp_path / "root").fingerprint == before


@pytest.mark.parametrize("name", ["mnist.zip", "cifar-10-python.tar.gz", "images.7z"])
def test_an_archive_is_no_root(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"packed")
    for dataset in ("mnist", "cifar10", "svhn", "celeba"):
        with pytest.raises(DataError, match=rf"dataset.root=\S*{re.escape(name)} is an archive; unpack it"):
            data.load(dataset, root=tmp_path / name)
    with pytest.raises(DataError, match=r"is an archive, which has to be unpacked; give a \.npy"):
        data.load("array", path=tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"packed"


def test_a_folder_inside_the_data_is_not_taken_for_their_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = publish_idx(monkeypatch, "mnist", pixels(20, 28, 28), pixels(6, 28, 28, seed=1))
    place_all(tmp_path, files.unpacked)
    before = sorted(tmp_path.rglob("*"))
    for inner in ("MNIST", "MNIST/raw"):
        with pytest.raises(DataError, match=f"lies inside the data; .*: dataset.root={tmp_path}$"):
            data.load("mnist", root=tmp_path / inner)
    assert sorted(tmp_path.rglob("*")) == before
    assert data.load("mnist", root=tmp_path).size == 20


@pytest.mark.parametrize("trouble", ["offline", "half", "no folder"])
def test_a_failed_download_leaves_nothing_and_says_how_to_place_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, trouble: str
) -> None:
    members = cifar_members("cifar100", pixels(4, 3, 32, 32))
    ((path, archive),) = publish_archive(monkeypatch, "cifar100", members).downloads.items()
    monkeypatch.setattr(datasets.CIFAR100, "url", server + path)
    root = tmp_path / "root"
    if trouble == "half":
        place(tmp_path / "server", path, archive[: len(archive) // 2])
    if trouble == "no folder":
        root.write_bytes(b"a file where the folder should be")
    with pytest.raises(DataError) as caught:
        data.load("cifar100", root=root)
    for words in (f"dataset.root={root}", server + path, datasets.CIFAR100.tgz_md5):
        assert words in str(caught.value)
    assert trouble == "no folder" or [each.name for each in root.iterdir()] == [".gantrain.lock"]


def test_a_full_disk_is_no_fault_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place_all(tmp_path, publish_archive(monkeypatch, "cifar100", cifar_members("cifar100", pixels(4, 3, 32, 32)))[1])

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torchvision.datasets.utils.extract_archive", fail)
    with pytest.raises(StorageError, match="No space"):
        data.load("cifar100", root=tmp_path)


def test_exhausted_memory_is_no_fault_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place_all(tmp_path, publish_idx(monkeypatch, "mnist", pixels(4, 28, 28), pixels(4, 28, 28)).unpacked)

    def fail(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("torchvision.datasets.mnist.read_image_file", fail)
    with pytest.raises(MemoryError):
        data.load("mnist", root=tmp_path)


def test_archives_in_a_folder_that_cannot_be_written_are_unpacked_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pixels(4, 3, 32, 32)
    place_all(tmp_path, publish_archive(monkeypatch, "cifar100", cifar_members("cifar100", images)).downloads)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    check_splits(data.load("cifar100", root=tmp_path, flip=False), images[:2], images[2:])
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-100-python.tar.gz"]


def test_two_processes_do_not_download_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(4, 3, 32, 32)
    files = publish_archive(monkeypatch, "cifar100", cifar_members("cifar100", images))
    second = threading.Thread(target=data.load, args=("cifar100",), kwargs={"root": tmp_path})
    with FileLock(tmp_path / ".gantrain.lock"):
        second.start()
        second.join(0.2)
        assert second.is_alive()
        place_all(tmp_path, files.unpacked)  # as the first process does; at the published address is nothing
    second.join(PATIENCE_SECONDS)
    check_splits(data.load("cifar100", root=tmp_path, flip=False), images[:2], images[2:])
    assert not (tmp_path / "cifar-100-python.tar.gz").exists()


@pytest.mark.parametrize("name", sorted(published.TORCHVISION))
def test_every_published_file_has_an_address_and_a_checksum(name: str) -> None:
    kind = getattr(datasets, published.TORCHVISION[name].kind)
    for file in published.published_files(kind):
        assert re.fullmatch(r"https?://.*", file.url)
        assert file.url.endswith(Path(file.path).name)
        for checksum in (file.md5, *file.checksums.values()):
            assert re.fullmatch("[0-9a-f]{32}", checksum)


def test_the_files_of_celeba_are_those_of_torchvision() -> None:
    known = {(name, md5, identity) for identity, md5, name in datasets.CelebA.file_list}
    for file in (published.CELEBA_PARTITION, published.CELEBA_IMAGES):
        assert (Path(file.path).name, file.md5, file.url.rpartition("=")[2]) in known
