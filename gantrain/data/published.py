"""The published sets of images, read by torchvision.

A reader takes (root folder, size, what to do about damaged files) and returns the splits at their own size, with the
pixels as published. The sources:

| name | images | source |
|---|---|---|
| digits | 1,797 grey 8×8 | UCI optical recognition set (Alpaydin and Kaynak 1998; CC BY 4.0) |
| mnist | 60,000 + 10,000 grey 28×28 | LeCun, Cortes, Burges |
| fashion_mnist | 60,000 + 10,000 grey 28×28 | Xiao et al. 2017, arXiv 1708.07747 |
| stacked_mnist | 128,000 + 26,000 RGB 28×28, each channel an image of mnist | Metz et al. 2017, arXiv 1611.02163 |
| cifar10, cifar100 | 50,000 + 10,000 RGB 32×32 | Krizhevsky 2009 |
| svhn | 73,257 + 26,032 RGB 32×32 | Netzer et al. 2011 |
| stl10 | 105,000 (5,000 of them labelled) + 8,000 RGB 96×96 | Coates et al. 2011 |
| celeba | 162,770 + 19,962 RGB 178×218 (19,867 for validation unused) | Liu et al. 2015, arXiv 1411.7766 |

Every file but CelebA's pictures is compared with its published MD5 before it is opened, so the pickles of CIFAR are the
published ones.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from gantrain.data.arrays import put_channels_first
from gantrain.data.decoding import Allocate, File, allocate_memory, decode_all
from gantrain.data.fetching import PublishedFile, open_published, verify_md5
from gantrain.data.folder import image_files, survey
from gantrain.data.images import Labels, Splits, resize
from gantrain.seeding import stream_generator

STACKS = (128_000, 26_000)  # of training and of test images, as in the experiments of PacGAN (arXiv 1712.04086)

DIGITS = tuple("0123456789")
CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(map(str, range(100)))
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


class TorchvisionSet(NamedTuple):
    """A set that a class of torchvision reads."""

    kind: str  # the class in torchvision.datasets
    classes: tuple[str, ...]
    train: Mapping[str, Any] = MappingProxyType({"train": True})  # arguments that choose the training split
    test: Mapping[str, Any] = MappingProxyType({"train": False})
    is_large: bool = False  # resized as soon as it is read


TORCHVISION = {
    "mnist": TorchvisionSet("MNIST", DIGITS),
    "fashion_mnist": TorchvisionSet("FashionMNIST", CLOTHES),
    "cifar10": TorchvisionSet("CIFAR10", CIFAR10),
    "cifar100": TorchvisionSet("CIFAR100", CIFAR100),
    "svhn": TorchvisionSet("SVHN", DIGITS, {"split": "train"}, {"split": "test"}),
    "stl10": TorchvisionSet("STL10", STL10, {"split": "train+unlabeled"}, {"split": "test"}, is_large=True),  # 3 GB
}

# MD5 of the unpacked files of MNIST and Fashion-MNIST, by that of the archive; published with many copies of them.
# Of these files torchvision only tests that they exist.
UNPACKED_MD5 = {
    "f68b3c2dcbeaaa9fbdd348bbdeb94873": "6bbc9ace898e44ae57da46a324031adb",
    "d53e105ee54ea40749a09fcbcd1e9432": "a25bea736e30d166cdddb491f175f624",
    "9fb629c4189551a2d022fa330f9573f3": "2646ac647ad5339dbf082846283269ea",
    "ec29112dd5afa0611ce80d1b7f02629c": "27ae3e4e09519cfbb04c329615203637",
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "25c81989df183df01b3e8a0aad5dffbe": "9018921c3c673c538a1fc5bad174d6f9",
    "bef4ecab320f06d8554ea6380940ec79": "8181f5470baa50b63fa0f6fddb340f0a",
    "bb300cfdad3c16e7a12a480ee83cd310": "15d484375f8d13e6eb1aabb0c3f46965",
}

CELEBA_COUNT = 162_770 + 19_962  # training and test images
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
# torchvision's own class needs gdown for the download, and files of attributes that are not used here.
CELEBA_PARTITION = PublishedFile(
    "celeba/list_eval_partition.txt", f"{_DRIVE}0B7EVK8r0v71pY0NSMzRuSXJEVkk", "d32c9cbf5e040fd4025c592c306e6668"
)
CELEBA_IMAGES = PublishedFile(
    "celeba/img_align_celeba.zip", f"{_DRIVE}0B7EVK8r0v71pZjFTYXZWM3FlRnM", "00d2c5bc6d35e252742224ab0c1e8fcb"
)


def published_files(kind: Any) -> list[PublishedFile]:
    """Return the files of a dataset class of torchvision, from its own table of addresses and checksums."""
    if hasattr(kind, "resources"):  # MNIST and Fashion-MNIST
        raw = f"{kind.__name__}/raw"
        return [
            PublishedFile(
                f"{raw}/{name}", kind.mirrors[0] + name, md5, {f"{raw}/{name.removesuffix('.gz')}": UNPACKED_MD5[md5]}
            )
            for name, md5 in kind.resources
        ]
    if hasattr(kind, "split_list"):  # SVHN
        return [
            PublishedFile(path, url, md5) for url, path, md5 in (kind.split_list[split] for split in ("train", "test"))
        ]
    unpacked = [*kind.train_list, *kind.test_list]  # CIFAR and STL-10
    if hasattr(kind, "meta"):
        unpacked.append((kind.meta["filename"], kind.meta["md5"]))
    paths = {f"{kind.base_folder}/{name}": md5 for name, md5 in unpacked}
    return [PublishedFile(kind.filename, kind.url, kind.tgz_md5, paths)]


def read_torchvision(name: str, root: Path, size: int, on_bad: str) -> Splits:
    """Read a set of `TORCHVISION`, at its own size; a large one at `size`."""
    import numpy as np
    import torch
    from torchvision import datasets

    source = TORCHVISION[name]
    kind: Any = getattr(datasets, source.kind)
    files = published_files(kind)
    # Checksums are compared here, for all sets alike. MNIST's class would prefer files of old versions of torchvision,
    # which have none.
    overrides = {"_check_integrity": lambda self: True, "_check_legacy_exist": lambda self: False}
    reader = type(kind.__name__, (kind,), overrides)
    with open_published(files, root) as folder:
        for path, md5 in (item for file in files for item in file.checksums.items()):
            verify_md5(folder / path, md5)
        parts = [reader(folder, **split) for split in (source.train, source.test)]
    images = (np.ascontiguousarray(put_channels_first(np.asarray(part.data))) for part in parts)
    train, test = map(torch.from_numpy, images)
    if source.is_large:
        train, test = resize(train, size), resize(test, size)
    labels = [torch.as_tensor(part.targets if hasattr(part, "targets") else part.labels).long() for part in parts]
    return Splits(train, test, Labels(source.classes, *labels))


def read_digits(root: Path, size: int, on_bad: str) -> Splits:
    """Read the 1,797 grey 8×8 digits that come with this package, with 0 … 16 scaled to 0 … 255.

    `digits.npz` holds the test part of the UCI set "Optical Recognition of Handwritten Digits" (E. Alpaydin and
    C. Kaynak, 1998, https://doi.org/10.24432/C50P49; CC BY 4.0), in its published order.
    """
    import numpy as np
    import torch

    with np.load(Path(__file__).with_name("digits.npz")) as file:
        images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    return Splits((images.double() * 255 / 16).round().byte()[:, None], labels=Labels(DIGITS, labels.long()))


def read_stacked_mnist(root: Path, size: int, on_bad: str) -> Splits:
    """Read MNIST and stack it: three images, drawn with replacement and for every seed alike, are the channels of one.

    The class of a stack is the number that its digits are, the first channel's being the hundreds.
    """
    import torch

    grey = read_torchvision("mnist", root, size, on_bad)
    assert grey.test is not None
    assert grey.labels is not None
    assert grey.labels.test is not None
    images, numbers = [], []
    splits = ((grey.train, grey.labels.train), (grey.test, grey.labels.test))
    for part, ((pixels, digits), count) in enumerate(zip(splits, STACKS, strict=True)):
        drawn = torch.randint(len(pixels), (count, 3), generator=stream_generator(0, "stacks", part))
        images.append(pixels[:, 0][drawn])
        numbers.append(digits[drawn] @ torch.tensor([100, 10, 1]))
    classes = tuple(map("".join, itertools.product(grey.labels.classes, repeat=3)))
    return Splits(images[0], images[1], Labels(classes, *numbers))


def find_celeba(root: Path) -> tuple[Path, bool]:
    """Return where CelebA's pictures are, or will be, and whether that is a folder."""
    unpacked = root / Path(CELEBA_IMAGES.path).with_suffix("")
    is_unpacked = os.path.isdir(unpacked)
    return unpacked if is_unpacked else root / CELEBA_IMAGES.path, is_unpacked


def survey_celeba(root: Path) -> tuple[int, list[Path]]:
    """Return how many of CelebA's images are read at most, and the files that hold them, or will."""
    path, is_unpacked = find_celeba(root)
    return CELEBA_COUNT, survey(path)[1] if is_unpacked else [path]


def read_celeba(root: Path, size: int, on_bad: str, *, allocate: Allocate = allocate_memory) -> Splits:
    """Read CelebA, aligned and cropped, its central square, from the zip or the folder `celeba/img_align_celeba/`."""
    import torch

    path, is_unpacked = find_celeba(root)
    with open_published([CELEBA_PARTITION] if is_unpacked else [CELEBA_PARTITION, CELEBA_IMAGES], root) as folder:
        verify_md5(folder / CELEBA_PARTITION.path, CELEBA_PARTITION.md5)
        listing = (folder / CELEBA_PARTITION.path).read_text(encoding="ascii")
        files = {Path(file.name).name: file for file in image_files(path)}
        parts = [_select_split(files, listing, split) for split in ("0", "2")]
    train, test = (decode_all(part, size, on_bad, path, allocate=allocate) for part in parts)
    skipped = int((~train.intact).sum() + (~test.intact).sum())
    return Splits(torch.from_numpy(train.pixels), torch.from_numpy(test.pixels), skipped=skipped)


def _select_split(files: Mapping[str, File], listing: str, split: str) -> list[File]:
    """Return the images of one split; lines are `000001.jpg 0` (training), `1` (validation) or `2` (test)."""
    names = [line.split()[0] for line in listing.splitlines() if line.split()[1:] == [split]]
    missing = [name for name in names if name not in files]
    if missing or not names:
        raise ValueError(f"{len(missing)} of the {len(names)} images listed are missing, {missing[:1]} the first")
    return [files[name] for name in names]
