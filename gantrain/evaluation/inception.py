"""The Inception network, whose features the literature uses for the FID, the KID and the Inception score.

It is the Inception v3 (Szegedy et al. 2016, arXiv 1512.00567) that the first code for these numbers downloaded, as
torch-fidelity converts it from TensorFlow: a version of 2015-12-05 with 1,008 outputs, pooling that leaves the border
out, and images resized to 299×299 as TensorFlow 1 did, bilinear without antialiasing. Another port or resizing gives
other numbers (Parmar et al. 2022, arXiv 2104.11222). φ(x) are the 2,048 numbers of its last pooling; p(y|x) comes from
the last layer without its bias, as in the first code of the Inception score. It was trained on photographs, and says
less about digits or faces.

The weights are one published file with one checksum, which is downloaded and verified before anything is computed.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gantrain.console import Progress, no_progress, say
from gantrain.errors import ConfigError, DataError, StorageError
from gantrain.files import cache_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NAME = "inception-2015-12-05"
BATCH = 32  # images a step
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


FILE_NAME = f"weights-{NAME}-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE_NAME}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def cache_path() -> Path:
    """Return the path to which the weights are downloaded."""
    return cache_folder() / "inception" / FILE_NAME


def find_weights() -> Path | None:
    """Return the downloaded file of weights, in the cache or where torch-fidelity keeps it; None if it is missing."""
    torch_home = Path(os.environ.get("TORCH_HOME") or cache_folder().with_name("torch"))
    return next(filter(Path.is_file, (cache_path(), torch_home / "hub" / "checkpoints" / FILE_NAME)), None)


def obtain_weights(path: Path | None = None) -> Path:
    """Return the verified file of weights at `path`, by default the downloaded one; download it if it is missing.

    Raises ConfigError if torch-fidelity is not installed, DataError if the weights are others or cannot be had.
    """
    library_version()
    found = path or find_weights() or cache_path()
    with weights_errors(found, is_given=path is not None):
        if path is None and not found.is_file():
            from filelock import FileLock
            from torch.hub import download_url_to_file

            say(f"downloading the weights of the Inception network to {found.parent}")
            found.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(found.parent / ".gantrain.lock"):
                if not found.is_file():  # another process may just have finished it
                    # Written beside its name, compared with the checksum and renamed.
                    download_url_to_file(URL, str(found), SHA256, progress=sys.stderr.isatty())
        _read_verified(found)
    return found


def load_inception(path: Path, device: torch.device) -> nn.Module:
    """Load the network with the weights at `path`: uint8 `[B, 3, H, W]` → φ(x) `[B, 2048]`, logits `[B, 1008]`.

    Raises ConfigError and DataError as `obtain_weights` does.
    """
    import torch

    library_version()
    with weights_errors(path):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        state = torch.load(io.BytesIO(_read_verified(path)), map_location="cpu", weights_only=True)
        # torch-fidelity would unpickle any file that it is given, so it is given one that was written here.
        torch.save(state, buffer := io.BytesIO())
        buffer.seek(0)
        outputs = ["2048", "logits_unbiased"]
        network: nn.Module = FeatureExtractorInceptionV3(NAME, outputs, feature_extractor_weights_path=buffer)
    return network.to(device)


def compute_features(network: nn.Module, images: Tensor, progress: Progress = no_progress) -> tuple[Tensor, Tensor]:
    """Return φ(x) `[N, 2048]` and p(y|x) `[N, 1008]` of 8-bit images `[N, C, H, W]`, float64 on the CPU.

    A grey image is taken as three equal channels.
    """
    import torch

    from gantrain.precision import allow_tf32

    device = next(network.parameters()).device
    parts, results = images.split(BATCH), []
    with torch.no_grad(), allow_tf32(False), progress(f"Inception features of {len(images):,} images") as update:
        for step, part in enumerate(parts, start=1):
            features, logits = network(part.to(device).expand(-1, 3, -1, -1))
            results.append((features.cpu().double(), logits.cpu().double().softmax(1)))
            update(step, len(parts))
    features, probabilities = map(torch.cat, zip(*results, strict=True))
    return features, probabilities


def library_version() -> str:
    """Return torch-fidelity's name and version. Raises ConfigError if it is not installed."""
    try:
        return f"torch-fidelity {importlib.metadata.version('torch-fidelity')}"
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "features=inception needs torch-fidelity, which is not installed: pip install 'gantrain[inception]'; "
            "or take features=classifier"
        ) from None


def _read_verified(path: Path) -> bytes:
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise ValueError(f"it is incomplete, damaged or another version: SHA-256 {found}, published {SHA256}")
    return content


@contextmanager
def weights_errors(path: Path, *, is_given: bool = False) -> Iterator[None]:
    """Turn any error of downloading or reading `path`, which the user may have given, into one with the way out."""
    try:
        yield
    except Exception as error:  # a connection, a disk, a file of other weights
        kind = StorageError if getattr(error, "errno", None) in STORAGE_ERRORS else DataError
        remedy = "delete it if it is there, then start again with a connection to download it"
        if is_given:
            remedy = "leave inception=FILE out to download the weights"
        raise kind(
            f"{path}: {getattr(error, 'strerror', None) or str(error).partition(chr(10))[0] or type(error).__name__}\n"
            f"  {remedy}; or place the file by hand:\n"
            f"  {URL}\n"
            f"  as {cache_path()} (SHA-256 {SHA256}), or anywhere else with inception=FILE; "
            "or take features=classifier"
        ) from error
