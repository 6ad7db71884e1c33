"""Checkpoints on disk: `images_<12 digits>.pt`, each with its checksum beside it, always whole.

Writing: temporary file beside the place, fsync, read back against the checksum of what was written, checksum file
renamed into place, then the checkpoint itself, then `last.pt`; only then are older ones removed. Reading: checksum
first, then `torch.load(weights_only=True)`, newest to oldest by number, so that a damaged file costs one interval.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from gantrain.errors import CheckpointError, DivergedError, StorageError
from gantrain.files import replacing, sync_folder, write_whole

FORMAT = 1
NAME = re.compile(r"images_(\d{12})\.pt")
# A checkpoint never takes the last of a disk that other files of the run need too.
SPARE_BYTES = 16 * 2**20


def name_at(images: int) -> str:
    """The file name of the checkpoint taken after `images` images."""
    return f"images_{images:012d}.pt"


def listed(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first by number; temporary and foreign files are ignored."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if NAME.fullmatch(path.name)), reverse=True)


def save(folder: Path, bundle: Mapping[str, Any], *, keep: int) -> Path:
    """Write `bundle` (tensors, numbers, strings, lists and dicts; its clock under "images") and prune to `keep` files.

    Raises StorageError when the file cannot be written whole, and DivergedError for a non-finite tensor; every older
    checkpoint then stands untouched.
    """
    path = folder / name_at(bundle["images"])
    size = _checked_size(bundle)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < size + SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write(path, bundle)
        _point_last(path)
    except OSError as error:
        raise StorageError(
            f"the checkpoint {path} ({size / 2**20:.0f} MiB) could not be written: {error.strerror or error}; "
            "older checkpoints are untouched. Free some space or mend the disk, then resume the run"
        ) from error
    _prune(folder, keep)
    return path


def _checked_size(bundle: Mapping[str, Any]) -> int:
    """The bytes of all tensors, each of which must be finite."""
    import torch

    size = 0
    for key, value in _leaves(bundle):
        if isinstance(value, torch.Tensor):
            size += value.numel() * value.element_size()
            if not bool(value.isfinite().all()):
                raise DivergedError(f"{key} holds non-finite numbers, so no checkpoint was written")
    return size


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{key}.{number}")
    else:
        yield key, value


class _HashingWriter(io.BytesIO):
    """Passes bytes on to `file` and keeps their SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file, self.hash = file, hashlib.sha256()

    def write(self, content: Any) -> int:
        self.hash.update(content)
        return self.file.write(content)


def _write(path: Path, bundle: Mapping[str, Any]) -> None:
    import torch

    with replacing(path, durable=True) as file:
        writer = _HashingWriter(file)
        torch.save(bundle, writer)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        if (checksum := hashlib.file_digest(file, "sha256").hexdigest()) != writer.hash.hexdigest():
            raise OSError(errno.EIO, "what was read back differs from what was written")
        write_whole(_checksum_file(path), f"{checksum}  {path.name}\n", durable=True)


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _point_last(path: Path) -> None:
    """Make `last.pt` the same whole file as `path`, by a hard link where the file system has them."""
    last = path.with_name("last.pt")
    for source, target in ((_checksum_file(path), _checksum_file(last)), (path, last)):
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # renaming onto another link to the same file leaves both
    sync_folder(path.parent)


def _prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints. Failing to is no loss."""
    for path in listed(folder)[max(keep, 2) :]:
        if path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)
            _checksum_file(path).unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """The bundle in `path`, on the CPU. Raises CheckpointError when it is missing, damaged or of another format."""
    import torch

    try:
        content = path.read_bytes()
        recorded = _checksum_file(path).read_text(encoding="utf-8").split()[0]
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise CheckpointError(f"{path} cannot be read with its checksum: {error}") from error
    if hashlib.sha256(content).hexdigest() != recorded:
        raise CheckpointError(f"{path} does not have the checksum recorded beside it; it is damaged")
    try:
        bundle = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a file that is no checkpoint
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is no checkpoint that can be loaded safely: {reason}") from error
    if not isinstance(bundle, dict) or bundle.get("format") != FORMAT:
        found = bundle.get("format") if isinstance(bundle, dict) else type(bundle).__name__
        raise CheckpointError(f"{path} has format {found}; this version of gantrain reads format {FORMAT}")
    return bundle


def newest(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint in `folder` that is whole: its path, its bundle, and what was wrong with newer ones.

    Raises CheckpointError when there is none: a damaged run never silently starts afresh.
    """
    problems: list[str] = []
    for path in listed(folder):
        try:
            return path, load(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    reasons = "\n  ".join(problems) or "it holds no checkpoint"
    raise CheckpointError(f"no usable checkpoint in {folder}:\n  {reasons}")
