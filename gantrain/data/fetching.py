"""Published files: found where they lie, otherwise downloaded, and never used half.

A download is written beside its final name, compared with the published checksum and then renamed into place, under a
lock that a second process waits for; so whatever has its final name is whole. The layout under the root folder is
torchvision's, and what torchvision downloaded there is found.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from gantrain.errors import DataError, StorageError

TIMEOUT_SECONDS = 60
MAX_MEMBER_BYTES = 4 * 2**30
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class Published(NamedTuple):
    """A file as its authors publish it."""

    path: str  # under the root folder
    url: str
    md5: str
    members: Mapping[str, str] = MappingProxyType({})  # of what is packed: MD5 of each wanted member, by path


def fetch(root: Path, file: Published) -> Path:
    """Where the file lies, after downloading it if it is missing."""
    path = root / file.path
    if not os.path.isfile(path):  # false, too, where looking is not permitted
        with refusing(path, file), locked(root):
            if not os.path.isfile(path):  # another process may just have finished it
                download(file.url, path, _new_md5(), file.md5)
    return path


def member_bytes(root: Path, file: Published) -> dict[str, bytes]:
    """What is packed in a published .tar.gz, by path: from the unpacked folder if it is whole, else from the archive.

    Raises DataError if a member is missing or differs from its published checksum.
    """
    if all(os.path.isfile(root / name) for name in file.members):
        return {name: checked_bytes(root / name, file, md5) for name, md5 in file.members.items()}
    path = fetch(root, file)
    with refusing(path, file):
        with open(path, "rb") as archive:  # nothing of another archive is even looked at
            compare_digest(path.name, hashlib.file_digest(archive, _new_md5), file.md5)
        contents = _unpacked(path, file)
        for name, md5 in file.members.items():
            compare(name, contents[name], md5)
    return {name: contents[name] for name in file.members}


def checked_bytes(path: Path, file: Published, md5: str) -> bytes:
    """The bytes of `path`; raises DataError if they differ from the published checksum."""
    with refusing(path, file):
        content = path.read_bytes()
        compare(path.name, content, md5)
    return content


@contextmanager
def refusing(path: Path, file: Published) -> Iterator[None]:
    """Turn whatever goes wrong while `path` is fetched or read into one error with the way out."""
    try:
        yield
    except Exception as error:  # what damaged bytes raise inside a decompressor or parser is not bounded
        kind = StorageError if getattr(error, "errno", None) in STORAGE_ERRORS else DataError
        raise kind(
            f"{path}: {str(error) or type(error).__name__}\n"
            "  delete it if it is there, then start again with a connection to download it; or place it by hand:\n"
            f"  {file.url}\n"
            f"  as {file.path} in the folder dataset.root (MD5 {file.md5})"
        ) from error


def compare(name: str, content: bytes, published: str) -> None:
    """Raise ValueError unless `content` has the published checksum."""
    compare_digest(name, hashlib.md5(content, usedforsecurity=False), published)


def compare_digest(name: str, found: hashlib._Hash, published: str) -> None:
    """Raise ValueError unless what was read of `name` has the published checksum."""
    if found.hexdigest() != published:
        raise ValueError(
            f"{name} is incomplete, damaged or another version: "
            f"{found.name.upper()} {found.hexdigest()}, published {published}"
        )


def _new_md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the root folder's lock file; the kernel lets go of it however the process ends."""
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".gantrain.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def download(url: str, path: Path, digest: hashlib._Hash, published: str) -> None:
    """Download beside `path`, compare what the new `digest` makes of it with the published one, rename into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        with open(part, "xb") as target:
            for block in _blocks(url):
                digest.update(block)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
        compare_digest("the download", digest, published)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _blocks(url: str) -> Iterator[bytes]:
    """What stands at an address, a mebibyte at a time, with a bar on the terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    request = urllib.request.Request(url, headers={"User-Agent": "gantrain"})
    with (
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response,
        Progress(console=console, disable=not console.is_terminal, transient=True) as progress,
    ):
        length = response.headers.get("Content-Length")
        task = progress.add_task("downloading", total=int(length) if length else None)
        while block := response.read(2**20):
            progress.advance(task, len(block))
            yield block


def _unpacked(path: Path, file: Published) -> dict[str, bytes]:
    """The wanted members of a tar, in one pass and without writing anything to disk."""
    contents: dict[str, bytes] = {}
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            if member.name in file.members:
                contents[member.name] = _plain_member(archive, member, contents)
    missing = sorted(set(file.members) - set(contents))
    if missing:
        raise ValueError(f"{', '.join(missing)} is not in it")
    return contents


def _plain_member(archive: tarfile.TarFile, member: tarfile.TarInfo, known: dict[str, bytes]) -> bytes:
    """The bytes of a member, if it is one regular file of bounded size and the first of its name."""
    stream = archive.extractfile(member) if member.isreg() else None
    if stream is None or member.name in known or member.size > MAX_MEMBER_BYTES:
        raise ValueError(f"{member.name} is a link, is there twice or is larger than {MAX_MEMBER_BYTES} bytes")
    return stream.read()
