"""Where a dataset's images are kept: on the device, in the host's memory, or in a file that is mapped into memory.

The file is for images that memory does not hold. It lies in the cache and holds the training images and then the
held-out ones, as training reads them: uint8, in their order, resized. Facts about them lie beside it. It is written
once, under a lock and a temporary name, and each start reads it through and compares its fingerprint, so that a file
that is damaged, or of other images, is written again and never trained on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain.console import say, show_progress
from gantrain.data.images import PART, Labels, SplitIndices, Splits, compute_fingerprint, divide, resize
from gantrain.devices import measure_free_memory, request_rows
from gantrain.distributed import count_local_processes
from gantrain.errors import StorageError
from gantrain.files import cache_folder, convert_write_errors, replace_file, safe_name, write_file

if TYPE_CHECKING:
    import numpy as np
    import torch

RESIDENCES = AUTO, DEVICE, HOST, MEMORY_MAP = ("auto", "device", "host", "memory_map")
FORMAT = 1
COPIES = 2  # of all images, while they are put into their order
SHARE_OF_MEMORY, SHARE_OF_GPU = 0.75, 0.5  # of what is free that images may take: a GPU holds the networks too
PROBE = 2**25  # bytes that are written to find how fast the disk is


class LoadedSplits(NamedTuple):
    """Training and held-out examples with their labels, and their fingerprint if it is known."""

    train: torch.Tensor
    held: torch.Tensor
    labels: Labels | None
    is_test: bool
    skipped: int
    fingerprint: str | None = None

    @classmethod
    def from_splits(cls, splits: Splits, chosen: SplitIndices, size: int) -> LoadedSplits:
        """Return the images that `choose_held_out` chose, resized, or the points."""
        parts = divide(splits.train, splits.test, chosen)
        train, held = (resize(part, size) if part.dim() > 2 else part for part in parts)
        return cls(train, held, splits.labels and splits.labels.divide(chosen), splits.test is not None, splits.skipped)


def choose_residence(wanted: str, size: int, device: torch.device) -> str:
    """Return where images of `size` bytes are kept: `wanted`, or for `auto` the first place that holds them.

    Another place than the device is printed.
    """
    if wanted != AUTO:
        return wanted
    import torch

    memory = measure_free_memory()
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    if COPIES * size * (processes := count_local_processes()) > SHARE_OF_MEMORY * memory:
        among = f"memory for {processes} processes" if processes > 1 else "memory"
        chosen, where, free = MEMORY_MAP, among, memory
    elif size > SHARE_OF_GPU * on_device:
        chosen, where, free = HOST, f"{device}'s memory", on_device
    else:
        return DEVICE
    say(
        f"dataset.resident={chosen}: the images take {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB of {where} are free"
    )
    return chosen


class MemoryMap:
    """A file of images in the cache. `key` is what decides on its content beside the source files."""

    def __init__(self, name: str, key: Sequence[object], sources: Sequence[Path]) -> None:
        digest = hashlib.blake2b(repr((FORMAT, *key)).encode(errors="surrogateescape"), digest_size=8).hexdigest()
        self.path = cache_folder() / "datasets" / f"{safe_name(name)}_{digest}.uint8"
        self.facts = self.path.with_suffix(".json")
        self.sources = _digest_sources(sources)

    def obtain(self, read_splits: Callable[[], tuple[Splits, SplitIndices]], size: int) -> LoadedSplits:
        """Return the images, from the file or from `read_splits`, which are then resized and written to it.

        Raises StorageError where the file cannot be written, and what `read_splits` raises.
        """
        if (kept := self.read()) is None:
            with self.lock():
                if (kept := self.read()) is None:  # another process may just have written it
                    self.write(*read_splits(), size)
                    kept = self.read()
        if kept is None:
            raise StorageError(f"{self.path} does not hold what was just written to it; look at its disk")
        say(f"{len(kept.train) + len(kept.held):,} images are read from {self.path}")
        return kept

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing the file; waits for one that does, and says so."""
        from filelock import FileLock, Timeout

        with convert_write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say(f"waiting for another process, which writes {self.path}")
                lock.acquire()
        try:
            for part in self.path.parent.glob(f".{self.path.name}.*.tmp"):  # of processes that were killed
                part.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def read(self) -> LoadedSplits | None:
        """Return what the file holds; None if it is missing, damaged or of other images, which is then printed."""
        if not self.path.is_file():
            return None
        try:
            facts = self._read_facts()
            train, held = _map_splits(self.path, facts["shapes"])
            if compute_fingerprint(train, held) != facts["fingerprint"]:
                raise ValueError("is damaged")
        except (OSError, ValueError) as error:
            reason = "cannot be read" if isinstance(error, OSError) else error
            say(f"{self.path} {reason}; it is written again")
            return None
        labels = facts["labels"] and Labels.from_lists(**facts["labels"])
        return LoadedSplits(train, held, labels, facts["is_test"], facts["skipped"], facts["fingerprint"])

    def _read_facts(self) -> dict[str, Any]:
        checksum, _, text = self.facts.read_text(encoding="utf-8").partition("\n")
        if checksum != hashlib.sha256(text.encode()).hexdigest():
            raise ValueError("is damaged")
        facts: dict[str, Any] = json.loads(text)
        if facts["sources"] != self.sources:
            raise ValueError("is of files that have changed since")
        return facts

    def write(self, splits: Splits, chosen: SplitIndices, size: int) -> None:
        """Write the images that `choose_held_out` chose. Raises StorageError."""
        images = [splits.train, splits.train if splits.test is None else splits.test]
        orders = [range(len(images[0]))[part] if isinstance(part, slice) else part for part in chosen]
        # An empty split keeps its size, as it does in memory.
        kinds = [resize(part[: len(order[:1])], size).shape[1:] for part, order in zip(images, orders, strict=True)]
        shapes = [(len(order), *kind) for order, kind in zip(orders, kinds, strict=True)]
        check_space(self.path, sum(map(math.prod, shapes)))
        digest, done = hashlib.blake2b(digest_size=8), 0
        with (
            convert_write_errors(self.path),
            replace_file(self.path, durable=True) as file,
            show_progress("writing the memory map") as update,
        ):
            for part, order, shape in zip(images, orders, shapes, strict=True):
                digest.update(repr(shape).encode())
                for start in range(0, len(order), PART):
                    request_rows(part, places := list(order[start : start + PART]))
                    rows = resize(part[places], size).contiguous().numpy()
                    digest.update(rows.data)
                    file.write(rows.data)
                    update(done := done + len(rows), sum(map(len, orders)))
            labels = splits.labels and splits.labels.divide(chosen).to_lists()
            facts = {"sources": self.sources, "fingerprint": digest.hexdigest(), "shapes": shapes, "labels": labels}
            text = json.dumps(facts | {"is_test": splits.test is not None, "skipped": splits.skipped})
            # First: the images are there once their file has its name.
            write_file(self.facts, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", durable=True)

    def allocate(self, shape: tuple[int, ...], estimate: Callable[[], float] | None) -> np.ndarray:
        """Return an array in a file without a name, where images wait until all are read; what it takes is printed.

        Raises StorageError.
        """
        import numpy as np

        size = math.prod(shape)
        check_space(self.path, COPIES * size)
        with convert_write_errors(self.path), tempfile.TemporaryFile(dir=self.path.parent) as file:
            if hasattr(os, "posix_fallocate"):  # a disk that is full later would end the process
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            if estimate is not None:
                began = time.monotonic()
                file.write(bytes(min(PROBE, size)))
                os.fsync(file.fileno())
                seconds = COPIES * (time.monotonic() - began) * size / min(PROBE, size) + estimate()
                say(
                    f"dataset.resident=memory_map: {shape[0]:,} images are written to {self.path}, once: "
                    f"{size / 1e6:,.1f} MB of disk, twice that until it is done, in about {seconds / 60:.1f} min"
                )
            return np.memmap(file, np.uint8, "r+", shape=shape)


def check_space(path: Path, size: int) -> None:
    """Raise StorageError if the disk of `path` has less than `size` bytes free."""
    with convert_write_errors(path):
        free = shutil.disk_usage(path.parent).free
    if size > free:
        raise StorageError(
            f"{path} takes {size / 1e6:,.1f} MB until it is written, and its disk has {free / 1e6:,.1f} MB free; free "
            "some, set XDG_CACHE_HOME to a folder on another disk, or lower dataset.size"
        )


def _map_splits(path: Path, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return the images in a file as tensors, which must not be written to. Raises OSError, ValueError."""
    import numpy as np
    import torch

    sizes = [math.prod(shape) for shape in shapes]
    if path.stat().st_size != sum(sizes):
        raise ValueError("is damaged")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        parts = torch.from_numpy(np.memmap(path, np.uint8, "r")).split(sizes)
    return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]


def _digest_sources(files: Sequence[Path]) -> str:
    """Return a digest of the names, sizes and times of change of files; one that cannot be looked at has none."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(os.fsencode(path))
        with suppress(OSError):
            status = path.stat()
            digest.update(f"\0{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\0".encode())
    return digest.hexdigest()
