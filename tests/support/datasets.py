"""Small datasets in the real formats: pictures, and files whose checksums take the place of the published ones.

A `publish_…` function makes torchvision believe that these files are what the authors published, at an address where
nothing is. It returns the files by path under the root folder: as they are read, and as they are downloaded.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from gantrain.data import published

NOWHERE = "http://127.0.0.1:9/"  # refuses connections at once


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_image(path: Path, array: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def place(root: Path, path: str, content: bytes) -> Path:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def place_all(root: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        place(root, path, content)


def packed(members: dict[str, bytes]) -> bytes:
    """A .tar.gz with one file more."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in {"README": b"unread", **members}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


class Files(NamedTuple):
    """The files of a set by path under the root folder."""

    unpacked: dict[str, bytes]
    downloads: dict[str, bytes]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def idx(array: np.ndarray) -> bytes:
    """LeCun's format, in which the files of MNIST are."""
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def publish_idx(
    patch: pytest.MonkeyPatch,
    name: str,
    train: np.ndarray,
    test: np.ndarray,
    train_labels: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
) -> Files:
    """MNIST or Fashion-MNIST, labelled 0, 1, 2, … by default."""
    kind = getattr(datasets, published.TORCHVISION[name].kind)
    files, resources, raw = Files({}, {}), [], f"{kind.__name__}/raw"
    for part, images, labels in (("train", train, train_labels), ("t10k", test, test_labels)):
        if labels is None:
            labels = (np.arange(len(images)) % 10).astype(np.uint8)
        for path, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = idx(array)
            archive = gzip.compress(content, 1)
            files.unpacked[f"{raw}/{path}"], files.downloads[f"{raw}/{path}.gz"] = content, archive
            resources.append((f"{path}.gz", md5(archive)))
            patch.setitem(published.UNPACKED_MD5, md5(archive), md5(content))
    patch.setattr(kind, "resources", resources)
    patch.setattr(kind, "mirrors", [NOWHERE])
    return files


def publish_archive(patch: pytest.MonkeyPatch, name: str, members: dict[str, bytes], archive: bytes = b"") -> Files:
    """CIFAR or STL-10, in an archive of these members."""
    kind = getattr(datasets, published.TORCHVISION[name].kind)
    archive = archive or packed(members)
    for table in ("train_list", "test_list"):
        named = [(file, md5(members[f"{kind.base_folder}/{file}"])) for file, _ in getattr(kind, table)]
        patch.setattr(kind, table, named)
    if hasattr(kind, "meta"):
        path = f"{kind.base_folder}/{kind.meta['filename']}"
        patch.setattr(kind, "meta", {**kind.meta, "md5": md5(members[path])})
    patch.setattr(kind, "tgz_md5", md5(archive))
    patch.setattr(kind, "url", f"{NOWHERE}{kind.filename}")
    return Files(members, {kind.filename: archive})


def cifar_members(
    name: str, images: np.ndarray, labels: list[int] | None = None, test_count: int | None = None
) -> dict[str, bytes]:
    """CIFAR's pickled batches, of which the last holds the test images, and its names of classes."""
    kind = getattr(datasets, published.TORCHVISION[name].kind)
    names = [file for file, _ in kind.train_list + kind.test_list]
    numbers = labels or [index % 10 for index in range(len(images))]
    first_test = len(images) - (test_count or len(images) // len(names))
    *train, test = *np.array_split(np.arange(first_test), len(names) - 1), np.arange(first_test, len(images))
    members = {}
    for file, part in zip(names, [*train, test], strict=True):
        batch: dict[str, Any] = {"data": images[part].reshape(len(part), -1)}
        batch["labels" if name == "cifar10" else "fine_labels"] = [numbers[index] for index in part]
        members[f"{kind.base_folder}/{file}"] = pickle.dumps(batch, 2)
    members[f"{kind.base_folder}/{kind.meta['filename']}"] = pickle.dumps({kind.meta["key"]: ["a", "b"]}, 2)
    return members


def stl10_members(
    train: np.ndarray, unlabelled: np.ndarray, test: np.ndarray, labels: tuple[list[int], list[int]] | None = None
) -> dict[str, bytes]:
    """STL-10's raw pixels, with columns before rows, and labels that count from 1."""
    train_labels, test_labels = labels or ([0] * len(train), [0] * len(test))
    images = {"train": train, "unlabeled": unlabelled, "test": test}
    members = {f"stl10_binary/{name}_X.bin": part.transpose(0, 1, 3, 2).tobytes() for name, part in images.items()}
    for name, numbers in (("train", train_labels), ("test", test_labels)):
        members[f"stl10_binary/{name}_y.bin"] = bytes(number + 1 for number in numbers)
    return members


def mat(images: np.ndarray, labels: list[int] | None = None) -> bytes:
    """SVHN's MATLAB file, in which 10 stands for the digit 0."""
    numbers = [number or 10 for number in (labels or [1] * len(images))]
    savemat(stream := io.BytesIO(), {"X": images.transpose(2, 3, 1, 0), "y": np.array(numbers, np.uint8)[:, None]})
    return stream.getvalue()


def publish_svhn(patch: pytest.MonkeyPatch, train: bytes, test: bytes) -> Files:
    table = dict(datasets.SVHN.split_list)
    files = {}
    for split, content in (("train", train), ("test", test)):
        path = table[split][1]
        files[path] = content
        table[split] = [f"{NOWHERE}{path}", path, md5(content)]
    patch.setattr(datasets.SVHN, "split_list", table)
    return Files(files, files)


class Expected(NamedTuple):
    """What a published set holds: uint8 `[N, C, H, W]`, and the class of each image, −1 where it is not known."""

    train: np.ndarray
    train_labels: list[int]
    test: np.ndarray
    test_labels: list[int]


def publish(patch: pytest.MonkeyPatch, name: str) -> tuple[Files, Expected]:
    """A small version of a set that torchvision reads, and what it holds."""
    channels, side = {"mnist": (1, 28), "fashion_mnist": (1, 28), "stl10": (3, 96)}.get(name, (3, 32))
    train_labels, test_labels = [3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 0]
    train, test = (pixels(len(part), channels, side, side, seed=len(part)) for part in (train_labels, test_labels))
    if name == "svhn":
        files = publish_svhn(patch, mat(train, train_labels), mat(test, test_labels))
    elif name == "stl10":
        unlabelled = pixels(2, channels, side, side, seed=2)
        members = stl10_members(train, unlabelled, test, labels=(train_labels, test_labels))
        files = publish_archive(patch, name, members)
        train, train_labels = np.concatenate([train, unlabelled]), [*train_labels, -1, -1]
    elif name.startswith("cifar"):
        both, labels = np.concatenate([train, test]), train_labels + test_labels
        files = publish_archive(patch, name, cifar_members(name, both, labels, test_count=len(test)))
    else:
        labels = (np.array(part, np.uint8) for part in (train_labels, test_labels))
        files = publish_idx(patch, name, train[:, 0], test[:, 0], *labels)
    return files, Expected(train, train_labels, test, test_labels)


def publish_celeba(patch: pytest.MonkeyPatch, listing: bytes, pictures: bytes) -> Files:
    files = {}
    for name, content in (("CELEBA_PARTITION", listing), ("CELEBA_IMAGES", pictures)):
        file = getattr(published, name)
        files[file.path] = content
        patch.setattr(published, name, file._replace(md5=md5(content), url=f"{NOWHERE}{Path(file.path).name}"))
    return Files(files, files)
