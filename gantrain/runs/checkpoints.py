"""Checkpoints on disk: `images_<12 digits>.pt`, each with its checksum beside it, always whole.

Writing: temporary file beside the place, fsync, read back against the checksum of what was to be written, checksum file
renamed into place, then the checkpoint itself, then `best.pt` where it is the best, and `last.pt`; only then are older
ones removed, but never the best. Reading: checksum
first, then `torch.load(weights_only=True)`, newest to oldest by number, so that a damaged file costs one interval.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gantrain.console import one_line
from gantrain.errors import CheckpointError, DivergedError, StorageError
from gantrain.files import reason, remove_leftovers, replacing, sync_folder, temporary_beside, write_whole
from gantrain.nested import leaves

FORMAT = 1
NAME = re.compile(r"images_(\d{12})\.pt")
LAST, BEST = "last.pt", "best.pt"
# What a bundle holds: the clock, the config as composed, what a generator is built from, on what data and with what it
# was made, and the state itself.
CONTENTS = {"images": int, "config": dict, "generator": dict, "data": dict, "made_with": dict, "state": dict}
# What can be in it beside tensors, lists and dictionaries: what is read back without unpickling code.
PLAIN = {int, float, bool, str, type(None)}
# Bounds on what is read: far above what a run writes, far below what would exhaust the reader.
MOST_VALUES, DEEPEST, SHARING, MOST_IMAGES = 1_000_000, 100, 4, 10**12
# A checkpoint never takes the last of a disk that other files of the run need too.
SPARE_BYTES = 16 * 2**20


def name_at(images: int) -> str:
    """The file name of the checkpoint taken after `images` images."""
    return f"images_{images:012d}.pt"


def images_at(path: Path) -> int:
    """The clock that a checkpoint's name tells."""
    return int(path.stem.removeprefix("images_"))


def listed(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first by number; temporary and foreign files are ignored."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if NAME.fullmatch(path.name)), reverse=True)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def save(folder: Path, bundle: Mapping[str, Any], *, keep: int, best: bool = False) -> Path:
    """Write `bundle` (tensors, numbers, strings, lists and dicts; its clock under "images") and prune to `keep` files
    beside the best; this one is it from now on where `best` says so.

    Raises StorageError when the file cannot be written whole, DivergedError for a non-finite tensor, and
    CheckpointError for a value that could not be read back; every older checkpoint then stands untouched.
    """
    import torch

    refuse_unfit(bundle)
    path = folder / name_at(bundle["images"])
    torch.save(bundle, buffer := io.BytesIO())  # written to a file, torch hides the reason of a failure
    content = buffer.getbuffer()
    try:
        folder.mkdir(exist_ok=True)  # without parents: a run folder that vanished is not made again
        if shutil.disk_usage(folder).free < len(content) + SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_with_checksum(path, content)
        if best:
            point(BEST, path)
        point(LAST, path)
    except OSError as error:
        raise StorageError(
            f"the checkpoint {path} could not be written, which takes {_mebibytes(len(content))} MiB and "
            f"{_mebibytes(SPARE_BYTES)} MiB to spare: {reason(error)}. Older checkpoints are untouched"
        ) from error
    with suppress(OSError):  # failing to tidy up is no loss
        remove_leftovers(folder, rf"{NAME.pattern}(\.sha256)?|(last|best)\.pt")
        _prune(folder, keep, path)
    return path


def refuse_unfit(bundle: Mapping[str, Any]) -> None:
    """Raise DivergedError for a tensor that is not finite, CheckpointError for a value that is no plain data."""
    import torch

    for key, value in leaves(bundle):
        if isinstance(value, torch.Tensor):
            if not bool(value.isfinite().all()):
                raise DivergedError(
                    f"{key} holds non-finite numbers at images = {bundle['images']:,}, so no checkpoint was written; "
                    "begin a new run with a lower optimizer.lr"
                )
        elif type(value) not in PLAIN:
            raise CheckpointError(
                f"{key} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, lists and dicts only"
            )


def _mebibytes(count: int) -> int:
    return -(-count // 2**20)


def write_with_checksum(path: Path, content: memoryview) -> None:
    """Write `content` to `path`, read it back, and write its checksum beside it. Raises OSError."""
    checksum = hashlib.sha256(content).hexdigest()
    with replacing(path, durable=True) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
            raise OSError(errno.EIO, "what was read back differs from what was written")
        write_whole(_checksum_file(path), f"{checksum}  {path.name}\n", durable=True)


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def point(name: str, path: Path) -> None:
    """Make `name` the same whole file as `path` beside it, by a hard link where the file system has them."""
    place = path.with_name(name)
    temporary = temporary_beside(place)
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
        os.replace(temporary, place)
    except OSError:
        with path.open("rb") as source, replacing(place, durable=True) as file:
            shutil.copyfileobj(source, file)
    temporary.unlink(missing_ok=True)  # renaming onto another link to the same file leaves both
    sync_folder(path.parent)


def _prune(folder: Path, keep: int, newest: Path) -> None:
    """Remove all but `keep` whole checkpoints up to the `newest`, and the best; damaged ones stay for who wants to look
    at them."""
    kept, best = 0, _checksum(folder / BEST)
    for path in listed(folder):
        if path.name > newest.name or path.is_symlink() or not is_whole(path):
            continue
        kept += 1
        if kept > max(keep, 2) and best not in _recorded(path):
            path.unlink()
            _checksum_file(path).unlink()


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def load(path: Path) -> dict[str, Any]:
    """The bundle in `path`, on the CPU. Raises CheckpointError when it is missing, damaged or no bundle of ours."""
    bundle, _ = load_verified(path, "checkpoint", remedy="take another checkpoint")
    check_contents(path, bundle, FORMAT, CONTENTS)
    if not 0 <= bundle["images"] < MOST_IMAGES:
        raise CheckpointError(f"{path}: its clock, {bundle['images']}, is no number of images")
    return bundle


def load_verified(path: Path, kind: str, *, remedy: str) -> tuple[Any, str]:
    """Load the plain data in `path` onto the CPU; returns them and the file's SHA-256.

    The file is opened once, so that what is loaded is what was verified, even while training replaces or prunes it.
    Raises CheckpointError, which calls it a `kind`, if it is missing, damaged (then with the remedy), packed, or holds
    anything but finite plain data.
    """
    import torch

    if not path.is_file():
        raise CheckpointError(f"{path} is not there")
    recorded = _recorded(path)
    try:
        with path.open("rb") as file:
            checksum = refuse_damaged(path, file, recorded, remedy)
            size = refuse_packed(path, file)
            bundle = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch.load raises many kinds for a file that is none of ours
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is no {kind} that can be loaded safely: {first_line}") from error
    for fault in faults(bundle, size):
        raise CheckpointError(f"{path}: {one_line(fault)}")
    return bundle, checksum


def refuse_damaged(path: Path, file: io.BufferedReader, recorded: set[str], remedy: str = "") -> str:
    """The checksum of the open `file` at `path`. Raises CheckpointError unless it is `recorded`, or recorded by now."""
    checksum = hashlib.file_digest(file, "sha256").hexdigest()
    size = file.tell()
    file.seek(0)
    if checksum in recorded or checksum in (recorded := recorded | _recorded(path)):
        return checksum
    if not recorded:
        raise CheckpointError(
            f"{path} has no checksum beside it, in {_checksum_file(path).name}; a copy needs both files"
        )
    raise CheckpointError(
        f"{path} ({size:,} bytes) does not have the checksum recorded beside it; it is damaged: {remedy}"
    )


def refuse_packed(path: Path, file: io.BufferedReader) -> int:
    """The size of the open `file`. Raises CheckpointError for one that is more once it is unpacked."""
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    file.seek(0)
    if any(member.compress_type for member in members) or sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{path} is packed, which no checkpoint of gantrain is")
    return size


def check_contents(path: Path, bundle: Any, version: int, contents: Mapping[str, type], *, remedy: str = "") -> None:
    """Raise CheckpointError unless the `bundle` in `path` has this format version and these keys with their types."""
    found = bundle.get("format") if isinstance(bundle, dict) else type(bundle).__name__
    if type(found) is not int or found != version:
        way_out = f"; {remedy}" if remedy else ""
        raise CheckpointError(f"{path} has format {found}; this version of gantrain reads format {version}{way_out}")
    for key, kind in contents.items():
        if not isinstance(bundle.get(key), kind):
            raise CheckpointError(f"{path} has no {key}, or not of type {kind.__name__}")


def faults(bundle: Any, size: int) -> Iterator[str]:
    """What is in a bundle that gantrain would not have written; lists and dicts that hold themselves come to an end."""
    import torch

    waiting, count, tensor_bytes = [("", bundle, 0)], 0, 0
    while waiting:
        key, value, depth = waiting.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            yield f"it holds more than {MOST_VALUES:,} values, or is nested more than {DEEPEST} deep"
            return
        if isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{key}.{str(name)[:100]}", item, depth + 1) for name, item in items]
        elif type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided:
            tensor_bytes += value.numel() * value.element_size()
            if tensor_bytes > SHARING * size:  # a tensor may repeat one stored number without end
                yield f"{key[1:]} is larger than the file"
                return
            if not bool(value.isfinite().all()):
                yield f"{key[1:]} holds non-finite numbers"
        elif type(value) not in PLAIN:
            yield f"{key[1:]} is a {type(value).__name__}, which no checkpoint holds"


def _checksum(path: Path) -> str | None:
    """Of a file, SHA-256; None where it is not there."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(path: Path) -> bool:
    """Whether a file has the checksum that is recorded for it."""
    recorded = _recorded(path)
    try:
        with path.open("rb") as file:
            refuse_damaged(path, file, recorded)
    except (OSError, CheckpointError):
        return False
    return True


def _recorded(path: Path) -> set[str]:
    """The checksum beside a file; for `last.pt` and `best.pt`, those of the checkpoints that they may be."""
    own = _checksum_file(path)
    beside = [own] if NAME.fullmatch(path.name) or own.exists() else path.parent.glob("*.pt.sha256")
    return {checksum for file in beside for checksum in _first_word(file)}


def _first_word(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(100).split()[:1]
    except (OSError, UnicodeDecodeError):
        return []


def newest_whole(folder: Path) -> Path | None:
    """The newest file whose checksum is right, or None."""
    return next(filter(is_whole, listed(folder)), None)


def newest(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint in `folder` that is whole: its path, its bundle, and what was wrong with newer ones.

    Raises CheckpointError when there is none: a damaged run never silently starts afresh.
    """
    problems: list[str] = []
    tried: list[Path] = []
    while (paths := listed(folder)) != tried:  # training may have pruned what was listed before it was read
        tried, problems = paths, []
        for path in paths:
            try:
                return path, load(path), problems
            except CheckpointError as error:
                problems.append(str(error))
    reasons = "\n  ".join(problems) or ("it holds no checkpoint" if folder.exists() else "there is no such folder")
    raise CheckpointError(
        f"no usable checkpoint in {folder}; put a copy of one there, with its .sha256, or start a new run:\n  {reasons}"
    )
