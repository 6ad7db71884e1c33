"""Checkpoints on disk: `images_<12 digits>.pt`, each with its checksum beside it, always whole.

Writing: temporary file beside the place, fsync, read back against the checksum of what was written, checksum file
renamed into place, then the checkpoint itself, then `last.pt`; only then are older ones removed. Reading: checksum
first, then `torch.load(weights_only=True)`, newest to oldest by number, so that a damaged file costs one interval.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from gantrain.errors import CheckpointError, DivergedError, StorageError
from gantrain.files import replacing, sync_folder, write_whole
from gantrain.nested import leaves

FORMAT = 1
NAME = re.compile(r"images_(\d{12})\.pt")
# What a bundle holds: the clock, the config as composed, what a generator is built from, on what data and with what it
# was made, and the state itself.
CONTENTS = {"images": int, "config": dict, "generator": dict, "data": dict, "made_with": dict, "state": dict}
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
    _prune(folder, keep, path)
    return path


def _checked_size(bundle: Mapping[str, Any]) -> int:
    """The bytes of all tensors, each of which must be finite."""
    import torch

    size = 0
    for key, value in leaves(bundle):
        if isinstance(value, torch.Tensor):
            size += value.numel() * value.element_size()
            if not bool(value.isfinite().all()):
                raise DivergedError(f"{key} holds non-finite numbers, so no checkpoint was written")
    return size


class _HashingWriter:
    """Passes bytes on to `file` and keeps their SHA-256: what `torch.save` needs of a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def _write(path: Path, bundle: Mapping[str, Any]) -> None:
    import torch

    with replacing(path, durable=True) as file:
        writer = _HashingWriter(file)
        torch.save(bundle, cast(IO[bytes], writer))
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
    temporary = last.with_name(f".last.pt.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, last)
    temporary.unlink(missing_ok=True)  # renaming onto another link to the same file leaves both
    sync_folder(path.parent)


def _prune(folder: Path, keep: int, newest: Path) -> None:
    """Remove all but `keep` whole checkpoints up to the `newest`; damaged ones stay for who wants to look at them.

    Failing to is no loss.
    """
    kept = 0
    for path in listed(folder):
        if path.name > newest.name or path.is_symlink() or not is_whole(path):
            continue
        kept += 1
        if kept > max(keep, 2):
            with suppress(OSError):
                path.unlink()
                _checksum_file(path).unlink()


def is_whole(path: Path) -> bool:
    """Whether a file has a checksum recorded for it: beside it, or for `last.pt` beside the checkpoint it is."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        beside = [_checksum_file(path)] if NAME.fullmatch(path.name) else path.parent.glob("*.pt.sha256")
        return any(checksum.read_text(encoding="utf-8").split()[:1] == [found] for checksum in beside)
    except (OSError, UnicodeDecodeError):
        return False


def load(path: Path) -> dict[str, Any]:
    """The bundle in `path`, on the CPU. Raises CheckpointError when it is missing, damaged or no bundle of ours."""
    import torch

    if not path.is_file():
        raise CheckpointError(f"{path} is not there")
    if not is_whole(path):
        raise CheckpointError(f"{path} does not have the checksum recorded beside it; it is damaged")
    try:
        bundle = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a file that is no checkpoint
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is no checkpoint that can be loaded safely: {reason}") from error
    if not isinstance(bundle, dict) or bundle.get("format") != FORMAT:
        found = bundle.get("format") if isinstance(bundle, dict) else type(bundle).__name__
        raise CheckpointError(f"{path} has format {found}; this version of gantrain reads format {FORMAT}")
    for key, kind in CONTENTS.items():
        if not isinstance(bundle.get(key), kind):
            raise CheckpointError(f"{path} has no {key}, or not of type {kind.__name__}")
    for key, value in leaves(bundle["state"]):
        if isinstance(value, torch.Tensor) and not bool(value.isfinite().all()):
            raise CheckpointError(f"{path}: {key} holds non-finite numbers")
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
