"""The published sets of images, each read from the files its authors publish.

A reader takes (root folder, size, what to do about damaged files) and gives the splits at their own size, with the
pixels as published. The sources:

| name | images | source |
|---|---|---|
| digits | 1,797 grey 8×8 | scikit-learn, from the UCI optical recognition set |
| mnist | 60,000 + 10,000 grey 28×28 | LeCun, Cortes, Burges |
| fashion_mnist | 60,000 + 10,000 grey 28×28 | Xiao et al. 2017, arXiv 1708.07747 |
| cifar10, cifar100 | 50,000 + 10,000 RGB 32×32 | Krizhevsky 2009 |
| svhn | 73,257 + 26,032 RGB 32×32 | Netzer et al. 2011 |
| stl10 | 105,000 (5,000 of them labelled) + 8,000 RGB 96×96 | Coates et al. 2011 |
| celeba | 162,770 + 19,962 RGB 178×218 (19,867 for validation unused) | Liu et al. 2015, arXiv 1411.7766 |
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.data.decoding import File, decode_all
from gantrain.data.fetching import Published, checked_bytes, fetch, member_bytes, refusing
from gantrain.data.folder import image_files
from gantrain.data.images import Splits, squared

if TYPE_CHECKING:
    import numpy as np
    import torch

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION_MNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_CELEBA = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
_TRAIN_IDX, _TEST_IDX = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"

# Addresses and checksums as torchvision 0.29 gives them, paths as it lays them out.
FILES: dict[str, dict[str, Published]] = {
    "mnist": {
        "train": Published(f"MNIST/raw/{_TRAIN_IDX}", _MNIST + _TRAIN_IDX, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        "test": Published(f"MNIST/raw/{_TEST_IDX}", _MNIST + _TEST_IDX, "9fb629c4189551a2d022fa330f9573f3"),
    },
    "fashion_mnist": {
        "train": Published(
            f"FashionMNIST/raw/{_TRAIN_IDX}", _FASHION_MNIST + _TRAIN_IDX, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"
        ),
        "test": Published(
            f"FashionMNIST/raw/{_TEST_IDX}", _FASHION_MNIST + _TEST_IDX, "bef4ecab320f06d8554ea6380940ec79"
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

    images = torch.from_numpy(load_digits().images)
    return Splits((images * 255 / 16).round().byte()[:, None])


def mnist(root: Path, size: int, on_bad: str) -> Splits:
    """MNIST: `MNIST/raw/*-images-idx3-ubyte`, gzipped or not."""
    return Splits(_idx(root, FILES["mnist"]["train"]), _idx(root, FILES["mnist"]["test"]))


def fashion_mnist(root: Path, size: int, on_bad: str) -> Splits:
    """Fashion-MNIST: `FashionMNIST/raw/*-images-idx3-ubyte`, gzipped or not."""
    return Splits(_idx(root, FILES["fashion_mnist"]["train"]), _idx(root, FILES["fashion_mnist"]["test"]))


def cifar10(root: Path, size: int, on_bad: str) -> Splits:
    """CIFAR-10: the six batches of `cifar-10-batches-py/`, or the archive they come in."""
    return _cifar(root, FILES["cifar10"]["archive"])


def cifar100(root: Path, size: int, on_bad: str) -> Splits:
    """CIFAR-100: the two batches of `cifar-100-python/`, or the archive they come in."""
    return _cifar(root, FILES["cifar100"]["archive"])


def svhn(root: Path, size: int, on_bad: str) -> Splits:
    """Street View House Numbers, cropped digits: `train_32x32.mat` and `test_32x32.mat`."""
    return Splits(_mat(root, FILES["svhn"]["train"]), _mat(root, FILES["svhn"]["test"]))


def stl10(root: Path, size: int, on_bad: str) -> Splits:
    """STL-10: training on the labelled and unlabelled images together; from `stl10_binary/` or its archive."""
    import torch

    archive = FILES["stl10"]["archive"]
    members = member_bytes(root, archive).items()
    # Resized one by one: at their own size the images take 3 GB.
    train, unlabelled, test = (squared(_columns(root, archive, name, data), size) for name, data in members)
    return Splits(torch.cat([train, unlabelled]), test)


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
    (train_pixels, skipped), (test_pixels, also) = (decode_all(part, size, on_bad) for part in (train, test))
    return Splits(torch.from_numpy(train_pixels), torch.from_numpy(test_pixels), skipped + also)


def _idx(root: Path, file: Published) -> torch.Tensor:
    """Images in LeCun's idx format, uint8 `[N, 1, H, W]`: magic number, N, H, W, then the pixels."""
    import torch

    unpacked = root / Path(file.path).with_suffix("")
    path = unpacked if os.path.isfile(unpacked) else fetch(root, file)
    with refusing(path, file), gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
        magic, count, height, width = struct.unpack(">4I", stream.read(16))
        if magic != 0x803 or height != width:
            raise ValueError(f"not square images in idx format: magic number {magic}, {height}×{width}")
        expected = count * height * width
        pixels = bytearray(stream.read(expected + 1))
        if len(pixels) != expected or expected == 0:
            found = "fewer" if len(pixels) < expected else "more"
            raise ValueError(f"the header announces {count} images of {height}×{width}, the file holds {found}")
    return torch.frombuffer(pixels, dtype=torch.uint8).view(count, 1, height, width)


def _cifar(root: Path, archive: Published) -> Splits:
    """CIFAR's pickled batches: each holds `data`, uint8 `[N, 3·32·32]`, channel by channel."""
    import torch

    *train, test = (_batch(root, archive, name, data) for name, data in member_bytes(root, archive).items())
    return Splits(torch.cat(train), test)


def _batch(root: Path, archive: Published, name: str, data: bytes) -> torch.Tensor:
    import numpy as np

    with refusing(root / name, archive):
        pixels = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()["data"]
        return _tensor(np.asarray(pixels).reshape(-1, 3, 32, 32))


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


def _mat(root: Path, file: Published) -> torch.Tensor:
    """SVHN's MATLAB file: `X`, uint8 `[32, 32, 3, N]`."""
    from scipy.io import loadmat

    path = fetch(root, file)
    data = checked_bytes(path, file, file.md5)
    with refusing(path, file):
        return _tensor(loadmat(io.BytesIO(data))["X"].transpose(3, 2, 0, 1))


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
