"""The Inception network, with which the literature measures the FID, the KID and the Inception score.

It is the Inception v3 (Szegedy et al. 2016, arXiv 1512.00567) that the first code for these numbers downloaded, as
torch-fidelity carries it over from TensorFlow: a version of 2015-12-05 with 1,008 outputs, pooling that leaves the
border out, and images resized to 299×299 as TensorFlow 1 did, bilinear without antialiasing. With another port or
resizing the numbers are others (Parmar et al. 2022, arXiv 2104.11222). φ(x) are the 2,048 numbers of its last pooling;
p(y|x) comes from the last layer without its bias, as in the first code of the Inception score. It has been trained on
photographs: what it makes of digits or faces is another matter than how alike they look.

The weights are one published file with one checksum. They are looked for, downloaded and verified before anything is
computed, and loaded as tensors only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain.console import say
from gantrain.data.fetching import STORAGE_ERRORS
from gantrain.errors import ConfigError, DataError, GantrainError, StorageError
from gantrain.files import cache

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NAME = "inception-2015-12-05"
BATCH = 32  # images a step


class Weights(NamedTuple):
    """The file of weights, as it is published."""

    name: str
    url: str
    sha256: str


WEIGHTS = Weights(
    f"weights-{NAME}-6726825d.pth",
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-{NAME}-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


class Inception(NamedTuple):
    """The network, and what its numbers depend on."""

    network: nn.Module
    checksum: str  # of the weights, SHA-256
    library: str  # with its version


def place() -> Path:
    """Where the weights are looked for first, and downloaded to: `inception` in the cache."""
    return cache() / "inception" / WEIGHTS.name


def present() -> Path | None:
    """The file of weights where it has been downloaded: in its place, or where torch-fidelity itself puts it."""
    torch_home = Path(os.environ.get("TORCH_HOME") or cache().with_name("torch"))
    return next(filter(Path.is_file, (place(), torch_home / "hub" / "checkpoints" / WEIGHTS.name)), None)


def obtained(path: Path | None = None) -> Path:
    """The file of weights at `path`, or where it is present, or downloaded to its place; it is verified.

    Needs no torch, so that a missing file is known at once. Raises ConfigError where torch-fidelity is not installed,
    DataError where the weights cannot be had or are others.
    """
    library()
    with refusing(found := path or present() or place(), named=path is not None):
        if path is None and not found.is_file():
            from filelock import FileLock
            from torch.hub import download_url_to_file

            found.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(found.parent / ".gantrain.lock"):
                if not found.is_file():  # another process may just have finished it
                    download_url_to_file(WEIGHTS.url, str(found), WEIGHTS.sha256, progress=sys.stderr.isatty())
        content(found)
    return found


def load(path: Path, device: torch.device) -> Inception:
    """The network with the weights at `path`. Raises ConfigError and DataError as `obtained` does."""
    import torch

    made_with = library()
    with refusing(path):
        state = torch.load(io.BytesIO(content(path)), map_location="cpu", weights_only=True)
        network = built(state)
    return Inception(network.to(device), WEIGHTS.sha256, made_with)


def built(state: dict[str, Any]) -> nn.Module:
    """torch-fidelity's network with these weights: uint8 `[B, 3, H, W]` → φ(x) `[B, 2048]`, logits `[B, 1008]`."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # It unpickles whatever the file that it is given asks for; so it is given one that was written here.
    torch.save(state, buffer := io.BytesIO())
    buffer.seek(0)
    outputs = ["2048", "logits_unbiased"]
    network: nn.Module = FeatureExtractorInceptionV3(NAME, outputs, feature_extractor_weights_path=buffer)
    return network


def seen(inception: Inception, images: Tensor, told: Callable[[int, int], None]) -> tuple[Tensor, Tensor]:
    """φ(x) `[N, 2048]` and p(y|x) `[N, 1008]` of 8-bit images `[N, C, H, W]`, float64 on the CPU.

    A grey image is taken as three equal channels. `told(steps made, steps in all)` is called after each step.
    """
    import torch

    from gantrain.precision import tf32

    device = next(inception.network.parameters()).device
    parts, found = images.split(BATCH), []
    for step, part in enumerate(parts, start=1):
        with torch.no_grad(), tf32(False):
            features, logits = inception.network(part.to(device).expand(-1, 3, -1, -1))
        found.append((features.cpu().double(), logits.cpu().double().softmax(1)))
        told(step, len(parts))
    features, probabilities = map(torch.cat, zip(*found, strict=True))
    return features, probabilities


def can_be_had() -> bool:
    """Whether torch-fidelity is installed, and the weights are present or can be downloaded now; if only they cannot,
    says why."""
    if importlib.util.find_spec("torch_fidelity") is None:
        return False
    if present() is None:
        say(f"downloading the weights of the Inception network to {place().parent}")
        try:
            obtained()
        except GantrainError as error:
            say(f"{error}\nimages are seen through a classifier instead, whose numbers are others")
            return False
    return True


def library() -> str:
    """torch-fidelity and its version. Raises ConfigError where it is not installed."""
    try:
        return f"torch-fidelity {importlib.metadata.version('torch-fidelity')}"
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "features=inception needs torch-fidelity, which is not installed: pip install 'gantrain[inception]'; "
            "or take features=classifier"
        ) from None


def content(path: Path) -> bytes:
    """The bytes of the file. Raises ValueError where they are not the published ones."""
    found = path.read_bytes()
    if (checksum := hashlib.sha256(found).hexdigest()) != WEIGHTS.sha256:
        raise ValueError(
            f"{path.name} is incomplete, damaged or another version: SHA256 {checksum}, published {WEIGHTS.sha256}"
        )
    return found


@contextmanager
def refusing(path: Path, *, named: bool = False) -> Iterator[None]:
    """Turn whatever goes wrong while `path`, which the user may have `named`, is fetched or read into one error with
    the way out."""
    try:
        yield
    except Exception as error:  # a connection, a disk, a file of other weights
        kind = StorageError if getattr(error, "errno", None) in STORAGE_ERRORS else DataError
        again = "delete it if it is there, then start again with a connection to download it"
        if named:
            again = "leave inception=FILE out, to have it downloaded"
        raise kind(
            f"{path}: {getattr(error, 'strerror', None) or str(error).partition(chr(10))[0] or type(error).__name__}\n"
            f"  {again}; or place it by hand:\n"
            f"  {WEIGHTS.url}\n"
            f"  as {place()} (SHA-256 {WEIGHTS.sha256}), or where you like with inception=FILE; "
            "or take features=classifier"
        ) from error
