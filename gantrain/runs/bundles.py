"""Bundles: files of tensors and plain data with a checksum beside each; checkpoints and stored classifiers.

Writing: to a temporary file in the same folder, fsync, read back and compared with the checksum, then the checksum file
and the file itself are renamed into place. Reading: checksum, then `torch.load(weights_only=True)`, then limits, format
and entries.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gantrain.console import one_line
from gantrain.errors import CheckpointError
from gantrain.files import replace_file, write_file

LINKS = ("last.pt", "best.pt")  # names under which the file of another name may be found
# Types of values beside tensors, lists and dictionaries: those that are read back without unpickling code.
PLAIN = {int, float, bool, str, type(None)}
# Limits on what is read: far above what a run writes, far below what would exhaust the reader's memory.
MOST_VALUES, DEEPEST, SHARING = 1_000_000, 50, 4
# Left free on the disk by a checkpoint, for the other files of the run.
SPARE_BYTES = 16 * 2**20


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def serialize(bundle: Mapping[str, Any]) -> memoryview:
    """Return the bytes of a bundle's file; written to a file directly, torch would hide the reason of a failure."""
    import torch

    torch.save(dict(bundle), buffer := io.BytesIO())
    return buffer.getbuffer()


def write_with_checksum(path: Path, content: memoryview) -> None:
    """Write a file into an existing folder, read it back, and write its checksum beside it. Raises OSError."""
    if shutil.disk_usage(path.parent).free < len(content) + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    checksum = hashlib.sha256(content).hexdigest()
    with replace_file(path, durable=True) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
            raise OSError(errno.EIO, "what was read back differs from what was written")
        write_file(checksum_path(path), f"{checksum}  {path.name}\n", durable=True)


def checksum_path(path: Path) -> Path:
    """Return the path of a file's checksum."""
    return path.with_name(f"{path.name}.sha256")


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def load_verified(path: Path, kind: str, *, remedy: str) -> tuple[Any, str]:
    """Return the plain data in a file, with tensors on the CPU, and the file's SHA-256.

    The file is opened once, so that the bytes that are loaded are those that were verified, even while training
    replaces the file. Raises CheckpointError if the file, called a `kind`, is missing, damaged (with the remedy),
    compressed, or holds anything but finite plain data.
    """
    import torch

    if not path.is_file():
        fault = "is not a regular file" if os.path.lexists(path) else "is not there"
        raise CheckpointError(f"{path} {fault}; give another")
    recorded = read_checksums(path)
    try:
        with path.open("rb") as file:
            checksum = check_checksum(path, file, recorded, remedy)
            size = check_unpacked(path, file)
            bundle = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch.load raises many types of exceptions for other files
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is no {kind} that can be loaded safely: {first_line}") from error
    for fault in find_faults(bundle, size):
        raise CheckpointError(f"{path}: {one_line(fault)}")
    return bundle, checksum


def check_checksum(path: Path, file: io.BufferedReader, recorded: set[str], remedy: str) -> str:
    """Return the checksum of the open `file`.

    Raises CheckpointError unless it is among those that were `recorded` before the file was opened, or is now.
    """
    if not recorded and not read_checksums(path):  # before a file of any size is read
        raise CheckpointError(
            f"{path} has no checksum beside it, in {checksum_path(path).name}; a copy needs both files"
        )
    checksum = hashlib.file_digest(file, "sha256").hexdigest()
    size = file.tell()
    file.seek(0)
    if checksum in recorded or checksum in read_checksums(path):
        return checksum
    raise CheckpointError(
        f"{path} ({size:,} bytes) does not have the checksum recorded beside it; it is damaged: {remedy}"
    )


def check_unpacked(path: Path, file: io.BufferedReader) -> int:
    """Return the size of the open `file`. Raises CheckpointError if it would be larger once unpacked."""
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    file.seek(0)
    if any(member.compress_type for member in members) or sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{path} is packed, which no file of gantrain is")
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


def find_faults(bundle: Any, size: int) -> Iterator[str]:
    """Yield a message for each value that gantrain does not write; `size` is that of the file in bytes."""
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
            yield f"{key[1:]} is a {type(value).__name__}, which no such file holds"


def is_whole(path: Path) -> bool:
    """Return whether a file has the checksum that is recorded for it."""
    return bool(recorded := read_checksums(path)) and hash_file(path) in recorded


def hash_file(path: Path) -> str | None:
    """Return the SHA-256 of a file, or None if there is no file that can be read."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def read_checksums(path: Path) -> set[str]:
    """Return the checksum beside a file; for `last.pt` and `best.pt`, those of all files that they may be."""
    checksums: set[str] = set()
    for file in path.parent.glob("*.pt.sha256") if path.name in LINKS else [checksum_path(path)]:
        with suppress(OSError, UnicodeDecodeError):
            if file.is_file():
                with file.open(encoding="utf-8") as opened:
                    checksums.update(opened.readline(100).split()[:1])
    return checksums
