"""The published sets of images, each read from the files its authors publish.

A reader takes (root folder, size, what to do about damaged files) and gives the splits at their own size, with the
pixels as published. The sources:

| name | images | source |
|---|---|---|
| digits | 1,797 grey 8×8 | scikit-learn, from the UCI optical recognition set |
| mnist | 60,000 + 10,000 grey 28×28 | LeCun, Cortes, Burges |
| fashion_mnist | 60,000 + 10,000 grey 28×28 | Xiao et al. 2017, arXiv 1708.07747 |
| stacked_mnist | 128,000 + 26,000 RGB 28×28, each channel an image of mnist | Metz et al. 2017, arXiv 1611.02163 |
| cifar10, cifar100 | 50,000 + 10,000 RGB 32×32 | Krizhevsky 2009 |
| svhn | 73,257 + 26,032 RGB 32×32 | Netzer et al. 2011 |
| stl10 | 105,000 (5,000 of them labelled) + 8,000 RGB 96×96 | Coates et al. 2011 |
| celeba | 162,770 + 19,962 RGB 178×218 (19,867 for validation unused) | Liu et al. 2015, arXiv 1411.7766 |
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import pickle
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.data.decoding import File, decode_all
from gantrain.data.fetching import Published, checked_bytes, compare, fetch, member_bytes, refusing
from gantrain.data.folder import image_files
from gantrain.data.images import Labels, Splits, squared
from gantrain.seeding import stream_generator

if TYPE_CHECKING:
    import numpy as np
    import torch

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION_MNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_CELEBA = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
_TRAIN_IDX, _TEST_IDX = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
_TRAIN_LABELS, _TEST_LABELS = "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"
MOST_IDX_BYTES = 64 * 2**20  # of an unpacked file; MNIST's have 47 MB
STACKS = (128_000, 26_000)  # of training and of test images, as in the experiments of PacGAN (arXiv 1712.04086)

DIGITS = tuple("0123456789")
CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(map(str, range(100)))
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

# Addresses and checksums as torchvision 0.29 gives them, paths as it lays them out. Those of MNIST's unpacked files are
# published with many copies of them.
FILES: dict[str, dict[str, Published]] = {
    "mnist": {
        "train": Published(
            f"MNIST/raw/{_TRAIN_IDX}.gz",
            f"{_MNIST}{_TRAIN_IDX}.gz",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            {f"MNIST/raw/{_TRAIN_IDX}": "6bbc9ace898e44ae57da46a324031adb"},
        ),
        "test": Published(
            f"MNIST/raw/{_TEST_IDX}.gz",
            f"{_MNIST}{_TEST_IDX}.gz",
            "9fb629c4189551a2d022fa330f9573f3",
            {f"MNIST/raw/{_TEST_IDX}": "2646ac647ad5339dbf082846283269ea"},
        ),
        "train_labels": Published(
            f"MNIST/raw/{_TRAIN_LABELS}.gz",
            f"{_MNIST}{_TRAIN_LABELS}.gz",
            "d53e105ee54ea40749a09fcbcd1e9432",
            {f"MNIST/raw/{_TRAIN_LABELS}": "a25bea736e30d166cdddb491f175f624"},
        ),
        "test_labels": Published(
            f"MNIST/raw/{_TEST_LABELS}.gz",
            f"{_MNIST}{_TEST_LABELS}.gz",
            "ec29112dd5afa0611ce80d1b7f02629c",
            {f"MNIST/raw/{_TEST_LABELS}": "27ae3e4e09519cfbb04c329615203637"},
        ),
    },
    "fashion_mnist": {
        "train": Published(
            f"FashionMNIST/raw/{_TRAIN_IDX}.gz",
            f"{_FASHION_MNIST}{_TRAIN_IDX}.gz",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            {f"FashionMNIST/raw/{_TRAIN_IDX}": "f4a8712d7a061bf5bd6d2ca38dc4d50a"},
        ),
        "test": Published(
            f"FashionMNIST/raw/{_TEST_IDX}.gz",
            f"{_FASHION_MNIST}{_TEST_IDX}.gz",
            "bef4ecab320f06d8554ea6380940ec79",
            {f"FashionMNIST/raw/{_TEST_IDX}": "8181f5470baa50b63fa0f6fddb340f0a"},
        ),
        "train_labels": Published(
            f"FashionMNIST/raw/{_TRAIN_LABELS}.gz",
            f"{_FASHION_MNIST}{_TRAIN_LABELS}.gz",
            "25c81989df183df01b3e8a0aad5dffbe",
            {f"FashionMNIST/raw/{_TRAIN_LABELS}": "9018921c3c673c538a1fc5bad174d6f9"},
        ),
        "test_labels": Published(
            f"FashionMNIST/raw/{_TEST_LABELS}.gz",
            f"{_FASHION_MNIST}{_TEST_LABELS}.gz",
            "bb300cfdad3c16e7a12a480ee83cd310",
            {f"FashionMNIST/raw/{_TEST_LABELS}": "15d484375f8d13e6eb1aabb0c3f46965"},
        ),
    },
    "cifar10": {
        "archive": Published(
            "cifar-10-python.tar.gz",
            f"{_CIFAR}cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            {
                "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
                "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
                "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
            },
        ),
    },
    "cifar100": {
        "archive": Published(
            "cifar-100-python.tar.gz",
            f"{_CIFAR}cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            {
                "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
                "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            },
        ),
    },
    "svhn": {
        "train": Published("train_32x32.mat", f"{_SVHN}train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        "test": Published("test_32x32.mat", f"{_SVHN}test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
    },
    "stl10": {
        "archive": Published(
            "stl10_binary.tar.gz",
            "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            "91f7769df0f17e558f3565bffb0c7dfb",
            {
                "stl10_binary/train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
                "stl10_binary/unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
                "stl10_binary/test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
            },
        ),
        "labels": Published(
            "stl10_binary.tar.gz",
            "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            "91f7769df0f17e558f3565bffb0c7dfb",
            {
                "stl10_binary/train_y.bin": "5a34089d4802c674881badbb80307741",
                "stl10_binary/test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
            },
        ),
    },
    "celeba": {
        "images": Published(
            "celeba/img_align_celeba.zip",
            _CELEBA + "0B7EVK8r0v71pZjFTYXZWM3FlRnM",
            "00d2c5bc6d35e252742224ab0c1e8fcb",
        ),
        "partition": Published(
            "celeba/list_eval_partition.txt",
            _CELEBA + "0B7EVK8r0v71pY0NSMzRuSXJEVkk",
            "d32c9cbf5e040fd4025c592c306e6668",
        ),
    },
}


def digits(root: Path, size: int, on_bad: str) -> Splits:
    """scikit-learn's 1,797 grey 8×8 digits, 0 … 16 scaled to 0 … 255; they come with the library."""
    import torch
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images)
    return Splits(
        (images * 255 / 16).round().byte()[:, None], labels=lambda: Labels(DIGITS, torch.from_numpy(found.target))
    )


def mnist(root: Path, size: int, on_bad: str) -> Splits:
    """MNIST: `MNIST/raw/*-images-idx3-ubyte`, gzipped or not."""
    return _idx_splits(root, FILES["mnist"], DIGITS)


def fashion_mnist(root: Path, size: int, on_bad: str) -> Splits:
    """Fashion-MNIST: `FashionMNIST/raw/*-images-idx3-ubyte`, gzipped or not."""
    return _idx_splits(root, FILES["fashion_mnist"], CLOTHES)


def stacked_mnist(root: Path, size: int, on_bad: str) -> Splits:
    """Stacked MNIST: three images of MNIST, drawn with replacement, are the channels of one; the same for every seed.

    Its class is the number that the channels' digits are, the first its hundreds.
    """
    import torch

    grey = mnist(root, size, on_bad)
    assert grey.test is not None
    digits = grey.labels  # `labels` keeps no pixels, as `grey` would
    drawn = [
        torch.randint(len(images), (count, 3), generator=stream_generator(0, "stacks", part))
        for part, (images, count) in enumerate(zip((grey.train, grey.test), STACKS, strict=True))
    ]

    def labels() -> Labels:
        assert digits is not None
        classes, train, test = digits()
        assert test is not None
        numbers = (part[stacks] @ torch.tensor([100, 10, 1]) for part, stacks in zip((train, test), drawn, strict=True))
        return Labels(tuple(map("".join, itertools.product(classes, repeat=3))), *numbers)

    return Splits(grey.train[:, 0][drawn[0]], grey.test[:, 0][drawn[1]], labels=labels)


def cifar10(root: Path, size: int, on_bad: str) -> Splits:
    """CIFAR-10: the six batches of `cifar-10-batches-py/`, or the archive they come in."""
    return _cifar(root, FILES["cifar10"]["archive"], CIFAR10)


def cifar100(root: Path, size: int, on_bad: str) -> Splits:
    """CIFAR-100: the two batches of `cifar-100-python/`, or the archive they come in."""
    return _cifar(root, FILES["cifar100"]["archive"], CIFAR100)


def svhn(root: Path, size: int, on_bad: str) -> Splits:
    """Street View House Numbers, cropped digits: `train_32x32.mat` and `test_32x32.mat`."""
    (train, train_labels), (test, test_labels) = (_mat(root, FILES["svhn"][split]) for split in ("train", "test"))
    return Splits(train, test, labels=lambda: Labels(DIGITS, train_labels, test_labels))


def stl10(root: Path, size: int, on_bad: str) -> Splits:
    """STL-10: training on the labelled and unlabelled images together; from `stl10_binary/` or its archive."""
    import torch

    archive = FILES["stl10"]["archive"]
    members = member_bytes(root, archive).items()
    # Resized one by one: at their own size the images take 3 GB.
    train, unlabelled, test = (squared(_columns(root, archive, name, data), size) for name, data in members)
    without = torch.full((len(unlabelled),), -1)

    def labels() -> Labels:
        content = member_bytes(root, FILES["stl10"]["labels"]).values()
        numbers, test = (torch.frombuffer(bytearray(part), dtype=torch.uint8).long() - 1 for part in content)
        return Labels(STL10, torch.cat([numbers, without]), test)

    return Splits(torch.cat([train, unlabelled]), test, labels=labels)


def celeba(root: Path, size: int, on_bad: str) -> Splits:
    """CelebA, aligned and cropped, its central square: from the zip, or the folder `celeba/img_align_celeba/`."""
    import torch

    pictures, partition = FILES["celeba"]["images"], FILES["celeba"]["partition"]
    listing = checked_bytes(fetch(root, partition), partition, partition.md5)
    unpacked = root / Path(pictures.path).with_suffix("")
    path = unpacked if os.path.isdir(unpacked) else fetch(root, pictures)
    with refusing(path, pictures):
        files = {Path(file.name).name: file for file in image_files(path)}
        train, test = (_part(files, listing, split) for split in ("0", "2"))
    (train_pixels, kept), (test_pixels, also) = (decode_all(part, size, on_bad, path) for part in (train, test))
    skipped = int((~kept).sum() + (~also).sum())
    return Splits(torch.from_numpy(train_pixels), torch.from_numpy(test_pixels), skipped)


def _idx_splits(root: Path, files: dict[str, Published], classes: tuple[str, ...]) -> Splits:
    """Images in LeCun's format, and their labels, from files of their own."""
    train, test = (_idx(root, files[split])[:, None] for split in ("train", "test"))

    def labels() -> Labels:
        return Labels(classes, *(_idx(root, files[f"{split}_labels"]).long() for split in ("train", "test")))

    return Splits(train, test, labels=labels)


def _idx(root: Path, file: Published) -> torch.Tensor:
    """LeCun's idx format, uint8: a magic number that ends in the number of dimensions, each one's size, the values."""
    import torch

    ((name, md5),) = file.members.items()
    path = root / name if os.path.isfile(root / name) else fetch(root, file)
    with refusing(path, file):
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            content = stream.read(MOST_IDX_BYTES + 1)
        compare(name, content, md5)
        values = 4 + 4 * content[3]
        shape = struct.unpack(f">{content[3]}I", content[4:values])
    return torch.frombuffer(bytearray(content[values:]), dtype=torch.uint8).view(shape)


def _cifar(root: Path, archive: Published, classes: tuple[str, ...]) -> Splits:
    """CIFAR's pickled batches: each holds `data`, uint8 `[N, 3·32·32]`, channel by channel, and a list of labels."""
    import torch

    batches = [_batch(root, archive, name, data) for name, data in member_bytes(root, archive).items()]
    (*train, test), (*train_labels, test_labels) = zip(*batches, strict=True)
    return Splits(torch.cat(train), test, labels=lambda: Labels(classes, torch.cat(train_labels), test_labels))


def _batch(root: Path, archive: Published, name: str, data: bytes) -> tuple[torch.Tensor, torch.Tensor]:
    import numpy as np
    import torch

    with refusing(root / name, archive):
        content = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        labels = content["fine_labels"] if "fine_labels" in content else content["labels"]
        return _tensor(np.asarray(content["data"]).reshape(-1, 3, 32, 32)), torch.tensor(labels)


class _ArrayUnpickler(pickle.Unpickler):
    """Knows arrays, lists, dicts, strings and numbers; a pickle that asks for anything else is refused."""

    KNOWN = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of that name, if it is known here."""
        module = module.replace("numpy.core.", "numpy._core.")  # renamed in NumPy 2
        if (module, name) in self.KNOWN:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array, list, dict, string or number")


def _mat(root: Path, file: Published) -> tuple[torch.Tensor, torch.Tensor]:
    """SVHN's MATLAB file: `X`, uint8 `[32, 32, 3, N]`, and `y`, uint8 `[N, 1]`, in which 10 stands for the digit 0."""
    import torch
    from scipy.io import loadmat

    path = fetch(root, file)
    data = checked_bytes(path, file, file.md5)
    with refusing(path, file):
        content = loadmat(io.BytesIO(data))
        return _tensor(content["X"].transpose(3, 2, 0, 1)), torch.from_numpy(content["y"].ravel() % 10).long()


def _columns(root: Path, archive: Published, name: str, data: bytes) -> torch.Tensor:
    """STL-10's raw pixels: `[N, 3, 96, 96]` with columns before rows."""
    import numpy as np

    with refusing(root / name, archive):
        return _tensor(np.frombuffer(data, np.uint8).reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2))


def _part(files: dict[str, File], listing: bytes, split: str) -> list[File]:
    """The images of one split, as the lines `000001.jpg 0` (training), `1` (validation) or `2` (test) assign them."""
    names = [line.split()[0] for line in listing.decode("ascii").splitlines() if line.split()[1:] == [split]]
    missing = [name for name in names if name not in files]
    if missing or not names:
        raise ValueError(f"{len(missing)} of the {len(names)} images listed are not there, {missing[:1]} the first")
    return [files[name] for name in names]


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    """A uint8 tensor of its own, in the usual memory order."""
    import numpy as np
    import torch

    if pixels.dtype != np.uint8 or len(pixels) == 0:
        raise ValueError(f"expected 8-bit pixels of at least one image, found {pixels.dtype} of shape {pixels.shape}")
    return torch.from_numpy(np.array(pixels, order="C"))
