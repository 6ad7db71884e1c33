"""Published files: found in their folder or downloaded and unpacked, and compared with their published checksums.

A download is written under a temporary name, compared with its checksum and then renamed; an archive is unpacked in the
same way. Both happen under a lock, so no file with its final name is incomplete. The layout of the root folder is
torchvision's.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from gantrain.data.folder import ARCHIVES
from gantrain.errors import DataError, StorageError, is_out_of_memory

TIMEOUT_SECONDS = 60
MAX_UNPACKED_BYTES = 64 * 2**20  # of a single compressed file; MNIST's have 47 MB
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class PublishedFile(NamedTuple):
    """A file as its authors publish it."""

    path: str  # under the root folder
    url: str
    md5: str
    unpacked: Mapping[str, str] = MappingProxyType({})  # of an archive: MD5 of each file that is read, by path

    @property
    def checksums(self) -> Mapping[str, str]:
        """MD5 of each file that is read, by path under the root folder: the unpacked ones, or the file itself."""
        return self.unpacked or {self.path: self.md5}

    def is_present(self, root: Path) -> bool:
        """Return whether all files that are read exist."""
        return all(os.path.isfile(root / path) for path in self.checksums)  # False, too, without permission to look


@contextmanager
def open_published(files: Sequence[PublishedFile], root: Path) -> Iterator[Path]:
    """Yield the folder that holds the files, after fetching those that are missing.

    The folder is `root`, or a temporary one if archives lie in a root that cannot be written. Raises DataError, with
    the addresses and names for placing the files by hand, if a file cannot be fetched or the block fails to read it;
    StorageError if the storage is full, read-only or failing.
    """
    if root.is_file() and root.suffix.lower() in (".zip", *ARCHIVES):
        raise DataError(f"dataset.root={root} is an archive; unpack it and give the folder that then holds the data")
    refuse_inner_folder(files, root)
    try:
        if all(file.is_present(root) for file in files):
            yield root
        elif not os.access(root, os.W_OK) and all(os.path.isfile(root / file.path) for file in files):
            with tempfile.TemporaryDirectory() as scratch:
                _fetch(files, root, Path(scratch))
                yield Path(scratch)
        else:
            root.mkdir(parents=True, exist_ok=True)
            _fetch(files, root, root)
            yield root
    except Exception as error:  # the kinds of errors inside parsers and connections are not bounded
        if is_out_of_memory(error):
            raise
        kind = StorageError if getattr(error, "errno", None) in STORAGE_ERRORS else DataError
        reason = str(error) or type(error).__name__
        wanted = [file for file in files if not file.is_present(root)] or files
        raise kind(
            f"{reason if str(root) in reason else f'{root}: {reason}'}\n"
            "  delete it if it is there, then start again with a connection to download it; or place by hand\n"
            f"  in the folder dataset.root={root}:\n"
            + "\n".join(f"  {file.path} from {file.url} (MD5 {file.md5})" for file in wanted)
        ) from error


def refuse_inner_folder(files: Sequence[PublishedFile], root: Path) -> None:
    """Raise DataError if `root` is a folder of the published layout, such as MNIST/raw, below the one to be given."""
    root = root.absolute()
    for folder in root.parents:
        is_inner = any(folder / name != root and (folder / name).is_relative_to(root) for name in files[0].checksums)
        if is_inner and all(file.is_present(folder) or os.path.isfile(folder / file.path) for file in files):
            raise DataError(f"dataset.root={root} lies inside the data; give the folder around: dataset.root={folder}")


def _fetch(files: Sequence[PublishedFile], root: Path, folder: Path) -> None:
    """Download to `root` and unpack to `folder` what is missing."""
    from filelock import FileLock

    with FileLock(folder / ".gantrain.lock"):
        for file in files:
            if file.is_present(folder):  # another process may just have finished it
                continue
            if not (root / file.path).is_file():
                _download(file, root / file.path)
            if file.unpacked:
                _unpack(file, root / file.path, folder)


def _download(file: PublishedFile, path: Path) -> None:
    """Download to `path.part`, compare the checksum and rename; shows a progress bar on a terminal."""
    from torchvision.datasets.utils import download_url

    part, timeout = path.with_name(f"{path.name}.part"), socket.getdefaulttimeout()
    part.unlink(missing_ok=True)
    socket.setdefaulttimeout(TIMEOUT_SECONDS)  # torchvision's connections would wait for ever
    try:
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            download_url(file.url, path.parent, part.name, file.md5)
        os.replace(part, path)
    finally:
        socket.setdefaulttimeout(timeout)
        part.unlink(missing_ok=True)


def _unpack(file: PublishedFile, archive: Path, folder: Path) -> None:
    """Unpack an archive beside the final names of its files, compare them and rename them."""
    from torchvision.datasets.utils import extract_archive

    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacked-") as scratch:
        if ".tar" in archive.suffixes:
            verify_md5(archive, file.md5)  # an archive from elsewhere could write anywhere
            extract_archive(archive, scratch)
        else:
            _decompress(archive, Path(scratch))
        for path, md5 in file.unpacked.items():
            unpacked = scratch / Path(path).relative_to(Path(file.path).parent)
            verify_md5(unpacked, md5, archive)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(unpacked, folder / path)


def _decompress(archive: Path, folder: Path) -> None:
    try:
        with gzip.open(archive) as stream:
            content = stream.read(MAX_UNPACKED_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{archive} cannot be unpacked: {error}") from error
    (folder / archive.stem).write_bytes(content)


def verify_md5(path: Path, published: str, source: Path | None = None) -> None:
    """Raise ValueError unless the file at `path`, unpacked from `source` if given, has the published MD5."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != published:
        what = f"{source or path} is incomplete, damaged or another version"
        raise ValueError(f"{what}: MD5 of {path.name} is {found}, published {published}")
