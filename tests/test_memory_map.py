"""Images in a file: the same data, the same weights, and a file that is whole or written again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from support.datasets import encoded, pixels, place, place_all, publish, publish_celeba
from support.runs import assert_equal_runs, assert_equal_states
from support.waiting import wait_until

from gantrain import data
from gantrain.data import decoding, memory_map
from gantrain.devices import list_group_memory
from gantrain.distributed import Part
from gantrain.errors import ConfigError, DataError, StorageError

SIDE = 8
SMALL = ["train.batch_size=20", "train.report_every_images=40", "train.held_out_images=10", "dataset.size=8"]
SMALL += ["dataset=folder", "architecture=mlp_digits"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the files, empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gantrain" / "datasets"


def write_images(folder: Path, count: int = 60, *, seed: int = 0, grey: bool = False) -> Path:
    """Pictures in two class folders, of which the second one's are darker."""
    for number, picture in enumerate(pixels(count, SIDE + 1, SIDE, 3, seed=seed)):
        image = Image.fromarray((picture[..., 0] if grey else picture) // (1 + 7 * (number % 2)))
        place(folder, f"{'ab'[number % 2]}/{number:03}.png", encoded(image))
    return folder


def write_splits(folder: Path) -> Path:
    """Pictures of a training and a test split, with classes below, and a damaged one."""
    for split, count in (("train", 50), ("test", 20)):
        write_images(folder / split, count, seed=count, grey=True)
    place(folder, "train/a/damaged.png", b"no picture")
    return folder


def write_zip(path: Path, **listing: str) -> Path:
    """The pictures in a .zip as StyleGAN's tools pack them: numbered folders, and classes in dataset.json."""
    with zipfile.ZipFile(path, "w") as archive:
        names = [f"0000{number // 20}/img{number:08}.png" for number in range(40)]
        for name, picture in zip(names, pixels(40, SIDE, SIDE, 3), strict=True):
            archive.writestr(name, encoded(Image.fromarray(picture)))
        labels = ", ".join(f'["{name}", {number % 3}]' for number, name in enumerate(names))
        archive.writestr("dataset.json", f'{{"labels": [{labels}]}}')
    return path


def write_array(path: Path) -> Path:
    images = pixels(50, 3, SIDE + 2, SIDE)
    if path.suffix == ".npy":
        np.save(path, images)
    elif path.name == "floats.npz":
        np.savez_compressed(path, images=np.asfortranarray(images / 255).astype(">f4"))
    else:
        np.savez(path, images=images.transpose(0, 2, 3, 1), numbers=np.arange(50))
    return path


SOURCES = {
    "a folder of classes": ("folder", "images", write_images, {}),
    "another number held out": ("folder", "images", write_images, {"held_out": 7, "flip": False, "fit": "pad"}),
    "nothing held out": ("folder", "images", write_images, {"held_out": 0, "range": "auto"}),
    "splits, a damaged file, in grey": ("folder", "images", write_splits, {"on_bad": "skip"}),
    "a zip of StyleGAN's tools": ("folder", "images.zip", write_zip, {}),
    "an array": ("array", "images.npy", write_array, {}),
    "one of two arrays": ("array", "images.npz", write_array, {}),
    "compressed big-endian floats": ("array", "floats.npz", write_array, {"fit": "stretch"}),
}


def assert_same_data(one: data.Images, other: data.Images) -> None:
    """Everything that a dataset says and gives is the same, bit for bit, also across epochs and out of turn."""
    assert (one.fingerprint, one.shape, one.size) == (other.fingerprint, other.shape, other.size)
    assert (one.split, one.skipped, one.has_held_out) == (other.split, other.skipped, other.has_held_out)
    for clock in (0, 20, 40, 60, 41, 205, 0):
        assert torch.equal(one.batch(clock, 20).images, other.batch(clock, 20).images)
    for count in (3, 1000):
        assert torch.equal(one.held_out(count), other.held_out(count))
    ours, theirs = one.labels(), other.labels()
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert ours.classes == theirs.classes
        assert torch.equal(ours.train, theirs.train)
        assert torch.equal(ours.test, theirs.test)


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_gives_the_data_that_memory_does_and_is_read_when_it_is_there(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    name, path, write, options = SOURCES[source]
    options = {"path": write(tmp_path / path), "size": SIDE, "seed": 5, **options}
    wanted = data.load(name, resident="device", **options)
    assert_same_data(wanted, data.load(name, resident="memory_map", **options))
    assert "once: 0.0 MB of disk, twice that until it is done, in about 0.0 min" in capsys.readouterr().out
    for reader in ("gantrain.data.folder.read", "gantrain.data.arrays.read"):
        monkeypatch.setattr(reader, None)
    found = data.load(name, resident="memory_map", **options)
    assert "images are read from" in capsys.readouterr().out
    assert_same_data(wanted, found)
    (file,) = cache.glob("*.uint8")
    before = int(found.train[0, 0, 0, 0])
    flip(file, 0)
    assert int(found.train[0, 0, 0, 0]) == before ^ 1  # it is the file


def test_published_sets_are_kept_in_a_file_at_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = publish(monkeypatch, "cifar10")
    place_all(tmp_path, files.unpacked)
    listing = "".join(f"{number:06}.jpg {(0, 2)[number % 4 == 0]}\n" for number in range(24)).encode()
    folder = tmp_path / "celeba" / "img_align_celeba"
    for number, picture in enumerate(pixels(24, 20, 16, 3)):
        place(folder, f"{number:06}.jpg", encoded(Image.fromarray(picture)))
    place_all(tmp_path, publish_celeba(monkeypatch, listing, b"").unpacked | {"celeba/img_align_celeba.zip": b""})
    for name in ("cifar10", "celeba"):
        wanted, *kept = (data.load(name, root=tmp_path, size=12, resident=r) for r in ("device", *["memory_map"] * 2))
        for found in kept:
            assert_same_data(wanted, found)
    place(folder, "000001.jpg", encoded(Image.fromarray(pixels(20, 16, 3, seed=9))))
    assert data.load("celeba", root=tmp_path, size=12, resident="memory_map").fingerprint != found.fingerprint


@pytest.mark.parametrize("resident", ["device", "memory_map"])
def test_parts_read_their_own_rows_of_the_global_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: str
) -> None:
    images = data.load("folder", path=write_images(tmp_path / "i"), size=SIDE, resident=resident)
    read: list[int] = []
    take = np.take
    monkeypatch.setattr(np, "take", lambda array, rows, axis: read.append(len(rows)) or take(array, rows, axis=axis))
    for clock in (0, 50):
        whole = images.batch(clock, 12).images
        parts = [images.batch(clock, 12, Part(rank, 3)).images for rank in range(3)]
        assert [len(part) for part in parts] == [4, 4, 4]
        assert torch.equal(torch.cat(parts), whole)
    assert set(read) == ({12, 4} if resident == "memory_map" else set())


def test_weights_evaluations_and_pictures_are_those_of_data_in_memory(gantrain, tmp_path: Path) -> None:
    path = write_images(tmp_path / "images", 240)
    for resident in ("device", "memory_map"):
        run = ["train", f"run_dir={resident}", f"dataset.path={path}", *SMALL, "train.images=200"]
        assert gantrain(*run, f"dataset.resident={resident}").code == 0
        answer = gantrain("evaluate", resident, "count=20", "train_classifier.epochs=20", "train_classifier.width=4")
        assert answer.code == 0, answer.err
    one, other = Path("device"), Path("memory_map")
    assert_equal_runs(one, other)
    for name in ("evaluation.json", "neighbours.png", "samples/real.png"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert gantrain("train", "run_dir=half", f"dataset.path={path}", *SMALL, "train.images=100").code == 0
    answer = gantrain("resume", "half", "train.images=200", "dataset.resident=memory_map")
    assert answer.code == 0, answer.err
    assert_equal_states(one, Path("half"))
    place(path, "a/new.png", encoded(Image.fromarray(pixels(SIDE, SIDE, 3, seed=1))))
    answer = gantrain("resume", "half", "train.images=240")
    assert answer.code == 4
    assert "files that have changed since; it is written again" in answer.out
    assert "its fingerprint is" in answer.err


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:  # in place: a file that is mapped must not become shorter
        file.seek(position)
        (before,) = file.read(1)
        file.seek(position)
        file.write(bytes([before ^ 1]))


DAMAGES = {
    "a flipped bit among the pixels": lambda file, facts: flip(file, 700),
    "a file cut short": lambda file, facts: file.write_bytes(file.read_bytes()[:-1]),
    "an empty file": lambda file, facts: file.write_bytes(b""),
    "another label": lambda file, facts: flip(facts, facts.read_text().index('"train": [') + 10),
    "facts cut short": lambda file, facts: facts.write_bytes(facts.read_bytes()[:-1]),
    "facts that are no text": lambda file, facts: facts.write_bytes(b"\xff"),
    "no facts": lambda file, facts: facts.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_written_again(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    options = {"path": write_images(tmp_path / "images"), "size": SIDE}
    wanted = data.load("folder", **options, resident="device")
    data.load("folder", **options, resident="memory_map")
    (file,), (facts,) = cache.glob("*.uint8"), cache.glob("*.json")
    before = file.read_bytes(), facts.read_bytes()
    DAMAGES[damage](file, facts)
    capsys.readouterr()
    assert_same_data(wanted, data.load("folder", **options, resident="memory_map"))
    assert "it is written again" in capsys.readouterr().out
    assert (file.read_bytes(), facts.read_bytes()) == before


KILLED = """
import os, signal, sys
from gantrain import data
from gantrain.data import decoding, memory_map
owner, name = {"decoding": (decoding, "fit_square"), "writing": (memory_map, "resize")}[sys.argv[1]]
original, calls = getattr(owner, name), []
def watched(*arguments):
    calls.append(1)
    if len(calls) == 40 if owner is decoding else len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
setattr(owner, name, watched)
data.load("folder", path=sys.argv[2], size=8, resident="memory_map")
"""


@pytest.mark.parametrize("moment", ["decoding", "writing"])
def test_a_process_that_is_killed_leaves_nothing_that_is_read(tmp_path: Path, cache: Path, moment: str) -> None:
    path = write_images(tmp_path / "images")
    process = subprocess.run([sys.executable, "-c", KILLED, moment, str(path)], capture_output=True)
    assert process.returncode == -9, process.stderr
    assert not list(cache.glob("*.uint8"))
    found = data.load("folder", path=path, size=SIDE, resident="memory_map")
    assert_same_data(data.load("folder", path=path, size=SIDE, resident="device"), found)
    assert not list(cache.glob(".*.tmp"))


def test_one_process_writes_and_the_others_wait_for_it(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, read = write_images(tmp_path / "images"), data.IMAGES["folder"].read
    data.load("folder", path=path, size=SIDE, resident="memory_map")
    (file,) = cache.glob("*.uint8")
    content = file.read_bytes()
    file.unlink()
    said, found = [], []
    monkeypatch.setattr(memory_map, "say", said.append)
    load = threading.Thread(
        target=lambda: found.append(data.load("folder", path=path, size=SIDE, resident="memory_map"))
    )
    with FileLock(cache / f".{file.name}.lock"):
        load.start()
        wait_until(lambda: said)
        assert "waiting for another process" in said[0]
        file.write_bytes(content)
    load.join()
    assert read is data.IMAGES["folder"].read
    assert len(said) == 2
    assert found[0].size == 54


def test_a_disk_that_is_too_small_is_refused_before_an_image_is_read(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_images(tmp_path / "images")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=20_000))
    monkeypatch.setattr(decoding, "open_image", None)
    with pytest.raises(StorageError, match=r"takes 0\.0 MB until it is written, .* XDG_CACHE_HOME"):
        data.load("folder", path=path, size=SIDE, resident="memory_map")
    assert not list(cache.glob("*.uint8"))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(path / "a" / "000.png"))
    with pytest.raises(StorageError, match="cannot be written"):
        data.load("folder", path=path, size=SIDE, resident="memory_map")


def test_auto_chooses_a_file_where_memory_is_short_and_says_so(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"path": write_images(tmp_path / "images"), "size": SIDE}
    wanted = data.load("folder", **options)
    assert "resident" not in capsys.readouterr().out
    size = 60 * 3 * SIDE**2
    for memory, is_file in ((2.7 * size, False), (2.6 * size, True)):
        monkeypatch.setattr(memory_map, "measure_free_memory", lambda memory=memory: memory)
        assert_same_data(wanted, data.load("folder", **options))
        assert ("dataset.resident=memory_map: the images take 0.0 MB" in capsys.readouterr().out) == is_file
        assert bool(list(cache.glob("*.uint8"))) == is_file


@pytest.mark.parametrize(("free", "chosen"), [(2.1, "device"), (1.9, "host")])
def test_auto_keeps_images_on_a_gpu_or_beside_it(monkeypatch: pytest.MonkeyPatch, free: float, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 1e6, 1e9))
    monkeypatch.setattr(memory_map, "measure_free_memory", lambda: 1e9)
    assert memory_map.choose_residence("auto", 1_000_000, torch.device("cuda", 0)) == chosen


@pytest.mark.parametrize(("processes", "chosen"), [("1", "device"), ("3", "device"), ("4", "memory_map")])
def test_the_processes_of_a_run_share_the_memory(monkeypatch: pytest.MonkeyPatch, processes: str, chosen: str) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setattr(memory_map, "measure_free_memory", lambda: 1e9)
    assert memory_map.choose_residence("auto", 100_000_000, torch.device("cpu")) == chosen


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("0::/", {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 100\ninactive_file 200"}, 500),
        (
            "0::/jobs/a",
            {"jobs/a/memory.max": "1000", "jobs/a/memory.current": "700", "jobs/a/memory.stat": "inactive_file 0"},
            300,
        ),
        (
            "0::/job/step/task",
            {"job/memory.max": "900", "job/memory.current": "700", "job/memory.stat": "inactive_file 0"},
            200,
        ),
        (
            "9:memory:/a\n8:pids:/",
            {
                "memory/a/memory.limit_in_bytes": "1000",
                "memory/a/memory.usage_in_bytes": "700",
                "memory/a/memory.stat": "total_inactive_file 50",
            },
            350,
        ),
        ("0::/", {"memory.max": "max", "memory.current": "700", "memory.stat": "inactive_file 200"}, None),
        ("9:memory:/", {}, None),
    ],
    ids=["own top", "a group below", "a group above", "version 1", "without a limit", "without files"],
)
def test_a_control_group_leaves_its_limit_without_what_is_used(
    tmp_path: Path, groups: str, files: dict[str, str], free: float | None
) -> None:
    """Files in the cache that nothing needs count as free: the system drops them."""
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{n}": t for n, t in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert list_group_memory(tmp_path) == ([] if free is None else [free])


def test_a_file_is_for_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dataset=ring is drawn as needed"):
        data.load("ring", resident="memory_map")
    with pytest.raises(ConfigError, match=r"dataset\.resident"):
        data.load("digits", resident="disk")
    np.save(tmp_path / "points.npy", np.zeros((9, 2)))
    with pytest.raises(ConfigError, match=r"points\.npy holds points"):
        data.load("array", path=tmp_path / "points.npy", resident="memory_map")
    np.save(tmp_path / "empty.npy", np.zeros((0, 3, 8, 8)))
    with pytest.raises(DataError, match=r"empty\.npy holds float64 \[0, 3, 8, 8\]"):
        data.load("array", path=tmp_path / "empty.npy", resident="memory_map")
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive, archive.open("images.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (9, 3, 8, 8)})
    with pytest.raises(DataError, match=r"short\.npz is no array that can be read.* says that 6,912 bytes follow"):
        data.load("array", path=tmp_path / "short.npz", resident="memory_map")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        data.load("folder", path=tmp_path / "none", resident="memory_map")


LIMITED = """
import re, resource, sys
from pathlib import Path
from gantrain import data
from gantrain.errors import MemoryExhaustedError, is_out_of_memory
data.load("array", path=sys.argv[1], size=8, resident="memory_map").batch(0, 10)  # what every process takes
taken = 1024 * int(re.search(r"VmData:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
limit = taken + 90 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
for resident in ("auto", "memory_map", "device"):
    try:
        images = data.load("array", path=sys.argv[2], size=64, resident=resident)
        print("found", images.size, float(images.batch(10**6, 100).images.mean()), tuple(images.held_out(9).shape))
    except Exception as error:
        print("found", is_out_of_memory(error) or isinstance(error, MemoryExhaustedError) or repr(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_images_that_memory_does_not_hold_are_written_and_read(tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", pixels(50, 3, 8, 8))
    np.save(tmp_path / "large.npy", pixels(10_000, 3, 64, 64))  # 123 MB
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "small.npy"), str(tmp_path / "large.npy")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MALLOC_ARENA_MAX": "1"})
    found = [line for line in done.stdout.splitlines() if line.startswith("found")]
    assert len(found) == 3, done.stderr
    assert found[0] == found[1]
    assert found[0].startswith("found 9000 0.")
    assert found[2] == "found True"
