"""Data that are bad: exit 3 with the file's name and folder, or skipped and counted; never silently trained on."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.datasets import (
    cifar_members,
    encoded,
    packed,
    pixels,
    place,
    place_all,
    publish,
    publish_archive,
    write_image,
)

from gantrain import data
from gantrain.data import decoding, published
from gantrain.errors import DataError

Gantrain = Callable[..., Any]
Check = Callable[[Path, str], None]
pytestmark = pytest.mark.usefixtures("plain_figures")


def thirty(folder: Path) -> Path:
    """Thirty coloured pictures that are well."""
    for number in range(30):
        write_image(folder / "ab"[number % 2] / f"{number}.png", pixels(8, 8, 3, seed=number))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return thirty(tmp_path / "pictures")


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of the pictures that are well, and of nothing else."""
    return data.load("folder", path=thirty(tmp_path_factory.mktemp("well")), size=8).fingerprint


def typed(folder: Path, *more: str) -> list[str]:
    settings = ("device=cpu", "train.batch_size=5", "train.held_out_images=3", "train.checkpoint_min_seconds=0")
    intervals = ("train.images=20", "train.report_every_images=20", "train.checkpoint_every_images=20")
    own = ("dataset=folder", f"dataset.path={folder}", "dataset.size=8", "architecture=conv8")
    return ["train", *settings, *intervals, *own, *more]


@pytest.fixture
def assert_refused_or_skipped(capsys: pytest.CaptureFixture[str], well: str) -> Callable[[Path, str], None]:
    """The one bad file in the folder is named together with it; skipping it is said and leaves those that are well."""

    def check(folder: Path, name: str) -> None:
        with pytest.raises(DataError) as caught:
            data.load("folder", path=folder, size=8)
        assert name in str(caught.value)
        assert f"1 of the 31 files in {folder}" in str(caught.value)
        capsys.readouterr()
        kept = data.load("folder", path=folder, size=8, on_bad="skip")
        assert (kept.size, kept.skipped, kept.fingerprint) == (27, 1, well)
        said = capsys.readouterr().out
        assert "left out 1 of the 31 files" in said
        assert name in said

    return check


# ---------------------------------------------------------------------------------------------------------------------
# Files that are damaged

KINDS = {
    "PNG": {},
    "JPEG": {"quality": 90},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_lzw"},
    "BMP": {},
    "GIF": {},
}


def whole(kind: str) -> bytes:
    return encoded(Image.fromarray(np.kron(pixels(8, 8, 3), np.ones((8, 8, 1), np.uint8))), kind, **KINDS[kind])


def same_picture(content: bytes, kind: str) -> bool:
    """Whether what is left still decodes to every pixel of the whole file."""
    try:
        return np.array_equal(decoding.decode(content, 64), decoding.decode(whole(kind), 64))
    except Exception:  # whatever a decoder raises
        return False


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files(pictures: Path, assert_refused_or_skipped: Check, tried, times, kind: str) -> None:
    content = whole(kind)
    for number in range(times(5, soak=40)):
        length = number * len(content) // times(5, soak=40)
        (pictures / "bad.png").write_bytes(content[:length])
        with tried("a truncated picture"):
            assert_refused_or_skipped(pictures, "bad.png")
    for missing in (1, 2, 3, 12):  # the end alone: what decodes all the same is the whole picture
        with tried("a truncated picture"):
            cut = content[:-missing]
            (pictures / "bad.png").write_bytes(cut)
            if not same_picture(cut, kind):
                assert_refused_or_skipped(pictures, "bad.png")


def test_flipped_bits(pictures: Path, assert_refused_or_skipped: Check, tried, times) -> None:
    """PNG has checksums. The other formats have none, so that only what a decoder stumbles over can be found."""
    content, chance = whole("PNG"), random.Random(0)
    for _ in range(times(12, soak=120)):
        altered = bytearray(content)
        altered[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (pictures / "bad.png").write_bytes(altered)
        with tried("a flipped bit in a PNG"):
            if not same_picture(bytes(altered), "PNG"):
                assert_refused_or_skipped(pictures, "bad.png")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "PNG"])
def test_flipped_bits_without_a_checksum_break_nothing(tmp_path: Path, tried, times, kind: str) -> None:
    content, chance = whole(kind), random.Random(0)
    for _ in range(times(20, soak=200)):
        altered = bytearray(content)
        altered[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        with tried("a flipped bit without a checksum: found, or decoded to a whole picture"):
            (tmp_path / "picture").write_bytes(altered)
            try:
                found = data.load("folder", path=tmp_path, size=8, held_out=0)
            except DataError:
                continue
            assert found.size == 1


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A PNG that announces more pixels than it is worth decoding."""
    return png(chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), ROWS, END)


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png_of(colour: int, depth: int, pixels: bytes, *before: bytes) -> bytes:
    """A PNG of 8×8 pixels with chunks before its rows."""
    rows = b"".join(
        b"\0" + pixels[start : start + len(pixels) // 8] for start in range(0, len(pixels), len(pixels) // 8)
    )
    return png(header(8, 8, depth, colour), *before, chunk(b"IDAT", zlib.compress(rows)), END)


def interlaced(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))


def array(values: np.ndarray) -> bytes:
    np.save(stream := io.BytesIO(), values)
    return stream.getvalue()


END = chunk(b"IEND", b"")
ROWS = chunk(b"IDAT", zlib.compress(bytes(8 * (1 + 8 * 3))))
JPEG = whole("JPEG")
FRAME = JPEG.index(b"\xff\xc0")
BAD_FILES: dict[str, bytes] = {
    "empty.png": b"",
    "one byte.png": b"\x89",
    "text.png": b"not an image",
    "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "script.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
    "thumbs.db": bytes(range(256)) * 20,
    "zeros.png": bytes(10_000),
    "noise.jpg": np.random.default_rng(0).bytes(10_000),
    "signature.png": b"\x89PNG\r\n\x1a\n",
    "signature.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "signature.webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    "signed.tiff": encoded(Image.fromarray(np.arange(-32, 32, dtype=np.int32).reshape(8, 8)), "TIFF"),
    "float beyond 1.tiff": encoded(Image.fromarray(np.arange(64, dtype=np.float32).reshape(8, 8)), "TIFF"),
    "no entry in the palette.png": png_of(3, 8, bytes(63) + b"\x02", chunk(b"PLTE", bytes(6))),
    "not finite.tiff": encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
    "icon.ico": encoded(Image.new("RGB", (16, 16)), "ICO"),
    "drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "not finite.npy": array(np.full((8, 8, 3), np.nan)),
    "finite.npy": array(np.zeros((8, 8, 3), np.uint8)),
    "pickled.npy": b"\x93NUMPY\x01\x00" + pickle.dumps({}),
    "archive in the folder.zip": b"PK\x05\x06" + bytes(18),
    "bomb.png": bomb(20_000, 20_000),
    "large.png": bomb(9_000, 9_000),
    "larger.png": bomb(10_000, 10_000),
    "largest.png": bomb(2**31 - 1, 2**31 - 1),
    "packed bomb.png": png(header(8192, 8193), chunk(b"IDAT", zlib.compress(bytes(2**20))), END),
    "no width.png": png(header(0, 8), ROWS, END),
    "no rows.png": png(header(8, 8), END),
    "no end.png": png(header(8, 8), ROWS),
    "wrong sum.png": png(header(8, 8), ROWS[:-1] + b"\x00", END),
    "wrong depth.png": png(header(8, 8, depth=3), ROWS, END),
    "wrong colour.png": png(header(8, 8, colour=5), ROWS, END),
    "few rows interlaced.png": png(interlaced(8, 8), chunk(b"IDAT", zlib.compress(bytes(80))), END),
    "broken rows.png": png(header(8, 8), chunk(b"IDAT", b"x" * 100), END),
    "text bomb.png": png(header(8, 8), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27), 9)), ROWS, END),
    "profile bomb.png": png(header(8, 8), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**27), 9)), ROWS, END),
    "huge.jpg": JPEG[: FRAME + 5] + struct.pack(">HH", 65500, 65500) + JPEG[FRAME + 9 :],
    "no lines.jpg": JPEG[: FRAME + 5] + struct.pack(">HH", 0, 64) + JPEG[FRAME + 9 :],
    "no scan.jpg": JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9",
    "two halves.jpg": JPEG[: len(JPEG) // 2] + JPEG[: len(JPEG) // 2],
    "huge.webp": b"RIFF\x16\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff",
    "packed.png.gz": gzip.compress(whole("PNG")),
    "packed.xz": lzma.compress(whole("PNG")),
    "a page that ends as.png": b"<html>" + whole("PNG"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_picture(pictures: Path, assert_refused_or_skipped: Check, tried, name: str) -> None:
    (pictures / "b" / name).write_bytes(BAD_FILES[name])
    with tried("a file that is no picture"):
        assert_refused_or_skipped(pictures, f"b/{name}")


def special_files(folder: Path) -> dict[str, Callable[[], object]]:
    return {
        "pipe.png": lambda: os.mkfifo(folder / "pipe.png"),
        "device.png": lambda: (folder / "device.png").symlink_to("/dev/zero"),
        "terminal.png": lambda: (folder / "terminal.png").symlink_to("/dev/tty"),
        "nowhere.png": lambda: (folder / "nowhere.png").symlink_to("nowhere-else"),
        "itself.png": lambda: (folder / "itself.png").symlink_to("itself.png"),
        "outside.png": lambda: (folder / "outside.png").symlink_to("/etc/passwd"),
        "memory.png": lambda: (folder / "memory.png").symlink_to("/proc/self/mem"),
        "sparse.png": lambda: sparse(folder / "sparse.png"),
    }


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**38)


@pytest.mark.parametrize("name", special_files(Path()))
def test_a_file_that_is_none(pictures: Path, assert_refused_or_skipped: Check, tried, name: str) -> None:
    special_files(pictures)[name]()
    with tried("a link, pipe, device or endless file among pictures"):
        assert_refused_or_skipped(pictures, name)


def test_loops_of_links_end(pictures: Path, well: str, tried) -> None:
    (pictures / "a" / "up").symlink_to(pictures)
    (pictures / "b" / "self").symlink_to(".")
    (pictures / ".hidden").write_bytes(b"passed over")
    with tried("a loop of links among folders"):
        assert data.load("folder", path=pictures, size=8).fingerprint == well


def test_the_command_refuses_or_skips_them_all(
    gantrain: Gantrain, pictures: Path, well: str, tmp_path: Path, tried
) -> None:
    for name, content in BAD_FILES.items():
        (pictures / name).write_bytes(content)
    with tried("a folder with many bad files"):
        answer = gantrain(*typed(pictures, "run_dir=run"))
        assert (answer.code, answer.out) == (3, "")
        assert f"{len(BAD_FILES)} of the {len(BAD_FILES) + 30} files in {pictures}" in answer.err
        assert f"and {len(BAD_FILES) - 3} more" in answer.err
        assert len(answer.err.splitlines()) < 10
        answer = gantrain(*typed(pictures, "dataset.on_bad=skip", "run_dir=skipping"))
        assert (answer.code, answer.err) == (0, "")
        assert f"left out {len(BAD_FILES)} of the {len(BAD_FILES) + 30} files" in answer.out
        kept = json.loads((tmp_path / "skipping/summary.json").read_text())["data"]
        assert (kept["skipped_files"], kept["fingerprint"]) == (len(BAD_FILES), well)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures that are converted, as docs/data.md says

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = pixels(8, 8, 3)


DEEP = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(">u2")
PACKED = {depth: pixels(8, depth) for depth in (1, 2, 4)}  # rows of 8 grey values


def unpack(depth: int) -> np.ndarray:
    """The grey values in PACKED, `[8, 8]`."""
    return np.unpackbits(PACKED[depth], axis=1).reshape(8, 8, depth) @ (1 << np.arange(depth)[::-1])


def over_white(picture: np.ndarray, is_clear: np.ndarray) -> np.ndarray:
    return np.where(is_clear[..., None], 255, picture)


def frames(kind: str, **options: Any) -> bytes:
    pictures = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    return encoded(pictures[0], kind, save_all=True, append_images=pictures[1:], **options)


CONVERTED: dict[str, tuple[bytes, np.ndarray, int]] = {
    "grey": (encoded(Image.fromarray(GREY)), np.stack([GREY] * 3, 2), 0),
    "black and white": (encoded(Image.fromarray(GREY > 99)), np.stack([(GREY > 99) * np.uint8(255)] * 3, 2), 0),
    "16-bit grey": (encoded(Image.fromarray(GREY.astype(np.uint16) * 257)), np.stack([GREY] * 3, 2), 0),
    "16-bit grey between": (encoded(Image.fromarray(GREY.astype(np.uint16) * 257 + 128)), np.stack([GREY] * 3, 2), 0),
    "16-bit colour": (
        png(
            header(8, 8, depth=16),
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + COLOUR[y].repeat(2).tobytes() for y in range(8)))),
            END,
        ),
        COLOUR,
        0,
    ),
    "16-bit colour with a transparent one": (
        png_of(2, 16, DEEP.tobytes(), chunk(b"tRNS", DEEP[2, 3].tobytes())),
        over_white(DEEP >> 8, np.all(DEEP[2, 3] == DEEP, -1)),
        0,
    ),
    "16-bit colour, all but transparent": (  # as the upper bytes alone would have it
        png_of(2, 16, DEEP.tobytes(), chunk(b"tRNS", (DEEP[2, 3] ^ 1).tobytes())),
        DEEP >> 8,
        0,
    ),
    "16-bit colour with alpha": (
        png_of(6, 16, np.dstack([DEEP, np.full((8, 8), 65535)]).astype(">u2").tobytes()),
        DEEP >> 8,
        0,
    ),
    "16-bit grey with alpha": (
        png_of(4, 16, np.dstack([DEEP[..., 0], np.full((8, 8), 65535)]).astype(">u2").tobytes()),
        np.stack([DEEP[..., 0] >> 8] * 3, 2),
        0,
    ),
    "16-bit grey with a transparent one": (
        png_of(0, 16, (GREY.astype(">u2") * 257).tobytes(), chunk(b"tRNS", (GREY[2, 3].astype(">u2") * 257).tobytes())),
        over_white(np.stack([GREY] * 3, 2), GREY[2, 3] == GREY),
        0,
    ),
    **{
        f"{depth}-bit grey with a transparent one": (
            png_of(0, depth, rows.tobytes(), chunk(b"tRNS", b"\0\1")),
            over_white(np.stack([unpack(depth) * (255 // (2**depth - 1))] * 3, 2), unpack(depth) == 1),
            0,
        )
        for depth, rows in PACKED.items()
    },
    "BMP": (encoded(Image.fromarray(COLOUR), "BMP"), COLOUR, 0),
    "GIF": (encoded(Image.fromarray(COLOUR).quantize(64, dither=0), "GIF"), COLOUR, 0),
    "animated GIF": (
        encoded(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        np.stack([GREY] * 3, 2),
        0,
    ),
    "transparent GIF": (encoded(Image.new("P", (8, 8), 3), "GIF", transparency=3), np.full_like(COLOUR, 255), 0),
    "TIFF": (encoded(Image.fromarray(COLOUR), "TIFF", compression="tiff_lzw"), COLOUR, 0),
    "pages of a TIFF": (frames("TIFF"), COLOUR, 0),
    "16-bit TIFF": (encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"), np.stack([GREY] * 3, 2), 0),
    "floating-point TIFF": (
        encoded(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
        np.stack([GREY] * 3, 2),
        0,
    ),
    "palette": (encoded(Image.fromarray(COLOUR).quantize(64, dither=0)), COLOUR, 0),
    "opaque": (encoded(Image.fromarray(np.dstack([COLOUR, np.full((8, 8), 255, np.uint8)]))), COLOUR, 0),
    "clear": (encoded(Image.fromarray(np.dstack([COLOUR, np.zeros((8, 8), np.uint8)]))), np.full_like(COLOUR, 255), 0),
    "grey and clear": (encoded(Image.new("LA", (8, 8), (0, 0))), np.full_like(COLOUR, 255), 0),
    "animated PNG": (frames("PNG"), COLOUR, 0),
    "animated WebP": (frames("WEBP", lossless=True), COLOUR, 0),
    "mislabelled": (encoded(Image.fromarray(COLOUR), "WEBP", lossless=True), COLOUR, 0),
    "CMYK": (
        encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100),
        np.full((8, 8, 3), [255, 0, 0]),
        3,
    ),
    "several in one JPEG": (frames("MPO", quality=100, subsampling=0), COLOUR, 12),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_every_kind_of_picture_is_converted(pictures: Path, tried, name: str) -> None:
    content, expected, tolerance = CONVERTED[name]
    with tried("a picture of another kind"):
        found = decoding.decode(content, 8).transpose(1, 2, 0).astype(int)
        assert np.abs(found - expected).max() <= tolerance
        (pictures / "picture.jpg").write_bytes(content)
        assert data.load("folder", path=pictures, size=8, held_out=0).size == 31


def test_mixed_sizes_become_one(tmp_path: Path, tried) -> None:
    for number, size in enumerate([(1, 1), (1, 300), (300, 1), (8, 8), (7, 9), (640, 480), (3, 1000)]):
        write_image(tmp_path / f"{number}.png", np.full((*size, 3), 30 * number, np.uint8))
    with tried("pictures of mixed sizes"):
        dataset = data.load("folder", path=tmp_path, size=8, held_out=0, flip=False)
        values = {round(float(image.mean()) * 255) for image in dataset.batch(0, 7).images}
        assert values == {30 * number for number in range(7)}


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def test_folders_that_are_none(tmp_path: Path, tried) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/.png").write_bytes(whole("PNG"))
    (tmp_path / "folders/of/folders").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("nowhere-else")
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "empty", "hidden", "folders", "file", "loop", "nowhere", "pipe", "file/below", "x" * 300):
        with tried("a folder that is missing, empty or none"), pytest.raises(DataError, match=name):
            data.load("folder", path=tmp_path / name)


UNREADABLE = """
import sys
from gantrain import data
from gantrain.errors import DataError
for path in sys.argv[1:]:
    try:
        data.load("folder", path=path, size=8)
    except DataError as error:
        print(str(error).splitlines()[0])
"""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="root can read everything, unless it gives that up")
def test_what_may_not_be_read_is_named(pictures: Path, tmp_path: Path, tried) -> None:
    """As root, without the right to read what its owner may not."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    (pictures / "a").chmod(0)
    other = shutil.copytree(pictures / "b", tmp_path / "other")
    (other / "1.png").chmod(0)
    bare = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"] if os.getuid() == 0 else []
    command = [*bare, sys.executable, "-c", UNREADABLE, str(tmp_path / "closed"), str(pictures), str(other)]
    with tried("a folder or file that may not be read"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        (pictures / "a").chmod(0o755)
        (tmp_path / "closed").chmod(0o755)
        if "setpriv" in done.stderr:
            pytest.skip("this machine does not let root give up a right")
        closed, folder, file = done.stdout.splitlines()
        assert "closed" in closed
        assert "Permission denied" in closed
        assert "Permission denied" in folder
        assert "1 of the 15 files" in file


def test_fewer_pictures_than_a_batch(gantrain: Gantrain, pictures: Path, tried) -> None:
    with tried("fewer pictures than a batch"):
        answer = gantrain(*typed(pictures, "train.batch_size=28", "run_dir=run"))
        assert (answer.code, answer.out) == (3, "")
        for words in (str(pictures), "27 training images", "train.batch_size=28"):
            assert words in answer.err


# ---------------------------------------------------------------------------------------------------------------------
# Archives


def member(name: str = "a.png", *, kind: int = 0, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = method
    info.external_attr = kind << 16
    return info


def zipped(*members: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
        warnings.simplefilter("ignore", UserWarning)  # of names that are there twice
        for info, content in members:
            archive.writestr(info, content)
    return stream.getvalue()


def encrypted(content: bytes) -> bytes:
    """The archive with the bit that says a member is encrypted."""
    altered = bytearray(content)
    altered[6] |= 1
    altered[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(altered)


def lying(content: bytes, size: int) -> bytes:
    """The archive with another size for its last member, in its directory."""
    altered = bytearray(content)
    at = content.rindex(b"PK\x01\x02") + 24
    altered[at : at + 4] = struct.pack("<I", size)
    return bytes(altered)


@cache
def archives() -> dict[str, bytes]:
    fine = (member("fine.png"), whole("PNG"))
    zeros = bytes(4 * 2**20)
    packed_tar = packed({"a.png": whole("PNG")})
    return {
        "up": zipped((member("../a.png"), whole("PNG")), fine),
        "up inside": zipped((member("x/../../a.png"), whole("PNG")), fine),
        "absolute": zipped((member("/etc/a.png"), whole("PNG")), fine),
        "drive": zipped((member("C:/a.png"), whole("PNG")), fine),
        "backslashes": zipped((member("..\\a.png"), whole("PNG")), fine),
        "share": zipped((member("//server/share/a.png"), whole("PNG")), fine),
        "link": zipped((member("link.png", kind=0o120777), b"/etc/passwd"), fine),
        "pipe": zipped((member("pipe.png", kind=0o010666), b""), fine),
        "device": zipped((member("device.png", kind=0o020666), b""), fine),
        "twice": zipped((member(), whole("PNG")), (member(), whole("JPEG"))),
        "bomb": zipped((member(method=zipfile.ZIP_DEFLATED), zeros), fine),
        "bzip2 bomb": zipped((member(method=zipfile.ZIP_BZIP2), zeros), fine),
        "lzma bomb": zipped((member(method=zipfile.ZIP_LZMA), zeros), fine),
        "encrypted": encrypted(zipped((member(), whole("PNG")))),
        "announced too large": lying(zipped((member(), whole("PNG"))), 2**31),
        "cut": zipped(fine)[:-30],
        "half": zipped(fine)[: len(zipped(fine)) // 2],
        "empty": b"",
        "no members": zipped(),
        "signature alone": b"PK\x03\x04",
        "directories alone": zipped((member("a/"), b"")),
        "tar": gzip.decompress(packed_tar),
        "tar.gz": packed_tar,
        "7z": b"7z\xbc\xaf\x27\x1c" + bytes(100),
        "text": b"not an archive",
    }


@pytest.mark.parametrize("name", archives())
def test_an_archive_that_a_folder_would_not_be(tmp_path: Path, tried, name: str) -> None:
    path = tmp_path / "pictures.zip"
    path.write_bytes(archives()[name])
    before = sorted(tmp_path.rglob("*"))
    for on_bad in ("error", "skip"):
        with tried("an archive with a trick"):
            with pytest.raises(DataError, match=r"pictures\.zip"):
                data.load("folder", path=path, size=8, on_bad=on_bad)
            assert sorted(tmp_path.rglob("*")) == before


@cache
def damaged_members() -> dict[str, bytes]:
    """Archives in which one picture of two is bad."""
    fine = (member("fine.png"), whole("PNG"))
    flipped = bytearray(zipped(fine, (member("bad.png"), whole("PNG"))))
    flipped[flipped.rindex(b"IDAT") + 20] ^= 1
    return {
        "flipped": bytes(flipped),
        "longer than announced": lying(zipped(fine, (member("bad.png"), whole("PNG"))), 100),
        "no picture": zipped(fine, (member("bad.png"), b"text")),
        "an archive": zipped(fine, (member("bad.png"), zipped(fine))),
        "a steering name": zipped(fine, (member("bad.png\x1b[31m\nx"), b"")),
        "truncated": zipped(fine, (member("bad.png"), whole("PNG")[:99])),
    }


@pytest.mark.parametrize("name", damaged_members())
def test_a_bad_member_of_an_archive_is_named_or_skipped(tmp_path: Path, tried, name: str) -> None:
    path = tmp_path / "pictures.zip"
    path.write_bytes(damaged_members()[name])
    with tried("a bad member of an archive"):
        with pytest.raises(DataError, match=r"1 of the 2 files in .*pictures\.zip") as caught:
            data.load("folder", path=path, size=8, held_out=0)
        assert "bad.png" in str(caught.value)
        assert str(caught.value).replace("\n", "").isprintable()
        kept = data.load("folder", path=path, size=8, held_out=0, on_bad="skip")
        assert (kept.size, kept.skipped) == (1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Published files


def damages(content: bytes, times: Any) -> Iterator[bytes]:
    """The file cut off, with flipped bits, empty, too long, and another file."""
    chance = random.Random(len(content))
    for _ in range(times(2, soak=12)):
        yield content[: chance.randrange(1, len(content))]
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        yield bytes(flipped)
    yield from (b"", content + b"!", b"<html>404</html>", content[::-1])


def same_content(damaged: bytes, content: bytes) -> bool:
    """Whether a damaged .gz still unpacks to the same bytes: its header holds a date, which nobody reads."""
    try:
        return gzip.decompress(damaged) == gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return False


@pytest.mark.parametrize("packing", ["unpacked", "downloads"])
@pytest.mark.parametrize("name", published.TORCHVISION)
def test_a_published_file_that_is_damaged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried, times, name: str, packing: str
) -> None:
    files: dict[str, bytes] = getattr(publish(monkeypatch, name)[0], packing)
    path, content = next(iter(files.items()))
    for damaged in damages(content, times):
        if path.endswith("ubyte.gz") and same_content(damaged, content):
            continue
        root = tmp_path / "root"
        shutil.rmtree(root, ignore_errors=True)  # of what another archive has been unpacked to
        place_all(root, {**files, path: damaged})
        with tried("a damaged file of a published dataset"):
            with pytest.raises(DataError) as caught:
                data.load(name, root=root)
            for words in (str(root / path), "MD5", "://", "dataset.root"):
                assert words in str(caught.value)
    place_all(root, files)
    assert data.load(name, root=root).size


class Attack:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("packing", ["unpacked", "downloads"])
def test_a_batch_of_cifar_that_calls_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried, packing: str
) -> None:
    """It is not the published one, so it is not opened."""
    monkeypatch.chdir(tmp_path)
    members = cifar_members("cifar100", pixels(4, 3, 32, 32))
    publish_archive(monkeypatch, "cifar100", members)
    members["cifar-100-python/train"] = pickle.dumps({"data": Attack()}, 2)
    place_all(tmp_path, members if packing == "unpacked" else {"cifar-100-python.tar.gz": packed(members)})
    with tried("a CIFAR batch with code"):
        with pytest.raises(DataError, match="incomplete, damaged or another version"):
            data.load("cifar100", root=tmp_path)
        assert not (tmp_path / "executed").exists()


def tar(*members: tuple[str, bytes, bytes]) -> bytes:
    with tarfile.open(fileobj=(stream := io.BytesIO()), mode="w:gz") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("trick", ["link", "hard link", "pipe", "up", "another set"])
def test_a_tar_with_a_trick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried, trick: str) -> None:
    """It is not the published one, so nothing of it is written."""
    members = cifar_members("cifar100", pixels(4, 3, 32, 32))
    publish_archive(monkeypatch, "cifar100", members)
    kinds = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE}
    entries = [(path, kinds.get(trick, tarfile.REGTYPE), content) for path, content in members.items()]
    if trick == "up":
        entries.append(("../up", tarfile.REGTYPE, b"written"))
    root = tmp_path / "root"
    place(root, "cifar-100-python.tar.gz", tar(*entries))
    with tried("an archive with a trick"), pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz is incomplete"):
        data.load("cifar100", root=root)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".gantrain.lock", "cifar-100-python.tar.gz", "root"]


# ---------------------------------------------------------------------------------------------------------------------
# Data that changed between a run and its resume


def replace(folder: Path) -> None:
    write_image(folder / "a/0.png", pixels(8, 8, 3, seed=99))


def one_pixel(folder: Path) -> None:
    array = pixels(8, 8, 3, seed=0)
    array[4, 4, 1] ^= 1
    write_image(folder / "a/0.png", array)


def rename(folder: Path) -> None:
    for number, path in enumerate(sorted(folder.rglob("*.png"), reverse=True)):
        path.rename(folder / f"{number}.jpeg")


def encode_again(folder: Path) -> None:
    for path in sorted(folder.rglob("*.png")):
        Image.open(path).save(path, compress_level=0)
        os.utime(path, (0, 0))


CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "added": (lambda f: write_image(f / "new.png", pixels(8, 8, 3, seed=99)), True),
    "a copy added": (lambda f: shutil.copy(f / "a/0.png", f / "copy.png"), True),
    "removed": (lambda f: (f / "a/0.png").unlink(), True),
    "replaced": (replace, True),
    "one pixel": (one_pixel, True),
    "renamed": (rename, False),
    "encoded again": (encode_again, False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_data_that_changed_are_noticed(pictures: Path, well: str, tried, name: str) -> None:
    change, is_other = CHANGES[name]
    change(pictures)
    with tried("data that changed"):
        assert (data.load("folder", path=pictures, size=8).fingerprint != well) == is_other


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and a run on them that leaves out damaged ones; tests copy it."""
    from gantrain.cli import main

    root = tmp_path_factory.mktemp("trained")
    thirty(root / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["gantrain"])
        assert main(typed(root / "pictures", "dataset.on_bad=skip", f"run_dir={root / 'run'}")) == 0
    return root


RESUMED: dict[str, tuple[Callable[[Path], object], int]] = {
    "replaced": (replace, 4),
    "damaged": (lambda f: (f / "a/0.png").write_bytes(b""), 4),
    "gone": (shutil.rmtree, 3),
    "renamed": (rename, 0),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_resumes_only_on_its_data(gantrain: Gantrain, trained: Path, tmp_path: Path, tried, name: str) -> None:
    change, code = RESUMED[name]
    root = shutil.copytree(trained, tmp_path / "root")
    change(root / "pictures")
    with tried("data that changed before a resume"):
        answer = gantrain("resume", root / "run", f"dataset.path={root / 'pictures'}", "train.images=40")
        assert answer.code == code, answer
        assert ("has changed since the run began" in answer.err) == (code == 4)
        if code == 3:
            assert str(root / "pictures") in answer.err
