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

import hashlib
import importlib.metadata
import io
import os
import sys
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.hub import download_url_to_file

from gantrain.console import Progress, no_progress, say
from gantrain.data.fetching import STORAGE_ERRORS
from gantrain.errors import ConfigError, DataError, StorageError
from gantrain.files import cache_folder
from gantrain.precision import allow_tf32

NAME = "inception-2015-12-05"
BATCH = 32  # images a step
FILE_NAME = f"weights-{NAME}-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE_NAME}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def cache_path() -> Path:
    """Return the path to which the weights are downloaded."""
    return cache_folder() / "inception" / FILE_NAME


def find_weights() -> Path:
    """Return the file of weights in the cache or where torch-fidelity keeps it, or the path to download it to."""
    torch_home = Path(os.environ.get("TORCH_HOME") or cache_folder().with_name("torch"))
    found = filter(Path.is_file, (cache_path(), torch_home / "hub" / "checkpoints" / FILE_NAME))
    return next(found, cache_path())


def load_inception(weights: Path | None, device: torch.device) -> nn.Module:
    """Load the network with the file `weights`, by default the downloaded one, which is downloaded if it is missing.

    The network maps uint8 `[B, 3, H, W]` to φ(x) `[B, 2048]` and logits `[B, 1008]`. Raises ConfigError if
    torch-fidelity is not installed, DataError if the weights are others or cannot be had.
    """
    library_version()
    path = weights or find_weights()
    try:
        if weights is None and not path.is_file():
            _download(path)
        content = path.read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != SHA256:
            raise ValueError(f"it is incomplete, damaged or another version: SHA-256 {found}, published {SHA256}")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        # torch-fidelity would unpickle any file that it is given, so it is given one that was written here.
        torch.save(state, buffer := io.BytesIO())
        buffer.seek(0)
        outputs = ["2048", "logits_unbiased"]
        network: nn.Module = FeatureExtractorInceptionV3(NAME, outputs, feature_extractor_weights_path=buffer)
    except Exception as error:  # a connection, a disk, a file of other weights
        kind = StorageError if getattr(error, "errno", None) in STORAGE_ERRORS else DataError
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        remedy = "delete it if it is there, then start again with a connection to download it"
        raise kind(
            f"{path}: {reason}\n"
            f"  {remedy if weights is None else 'leave inception=FILE out to download the weights'}; "
            f"or place the file by hand:\n  {URL}\n"
            f"  as {cache_path()} (SHA-256 {SHA256}), or anywhere else with inception=FILE; "
            "or take features=classifier"
        ) from error
    return network.to(device)


def _download(path: Path) -> None:
    """Download the weights beside `path`, compare them with their checksum and rename them."""
    say(f"downloading the weights of the Inception network to {path.parent}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / ".gantrain.lock"):
        if not path.is_file():  # another process may just have finished it
            download_url_to_file(URL, str(path), SHA256, progress=sys.stderr.isatty())


def compute_features(network: nn.Module, images: Tensor, progress: Progress = no_progress) -> tuple[Tensor, Tensor]:
    """Return φ(x) `[N, 2048]` and p(y|x) `[N, 1008]` of 8-bit images `[N, C, H, W]`, float64 on the CPU.

    A grey image is taken as three equal channels.
    """
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
