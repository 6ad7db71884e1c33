"""Checkpoints and run folders that somebody else made: they execute nothing, and write nowhere but in their place."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from faults.processes import run
from gantrain.cli import main
from gantrain.runs import checkpoints

Gantrain = Callable[..., Any]

TINY = (
    *("device=cpu", "train.batch_size=20", "train.held_out_images=40", "train.checkpoint_min_seconds=0"),
    *("train.report_every_images=40", "train.checkpoint_every_images=40", "train.sample_every_images=80"),
)
ESCAPES = "\x1b[31m\x1b]0;title\x07\r\n\x9b2J\u202e[red]"
pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 80 points; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["gantrain"])
        assert main(["train", *TINY, "dataset=ring", "train.images=80", f"run_dir={folder}"]) == 0
    return folder


@pytest.fixture
def received(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, as it could have come by mail, where unsafe loading is the default."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    return shutil.copytree(finished, tmp_path / "run")


def only_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Remove all checkpoints but the newest, and `last.pt`; return its path and its contents."""
    newest, *older = checkpoints.list_files(folder / "checkpoints")
    for path in (*older, newest.with_name("last.pt")):
        path.unlink()
    return newest, torch.load(newest, weights_only=True)


def put(path: Path, content: bytes) -> None:
    """`content` as a checkpoint whose checksum is right: who sends one can compute that too."""
    path.write_bytes(content)
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")


def saved(bundle: Any) -> bytes:
    torch.save(bundle, buffer := io.BytesIO())
    return buffer.getvalue()


def assert_refused(answer: Any, code: int = 4) -> None:
    assert (answer.code, answer.out) == (code, ""), answer
    assert answer.err.startswith("gantrain: ")
    assert "Traceback" not in answer.err
    assert answer.err.replace("\n", "").isprintable()
    assert len(answer.err.splitlines()) <= 20


COMMANDS = {
    "resume": lambda gantrain, folder: gantrain("resume", folder, "train.images=120"),
    "sample": lambda gantrain, folder: gantrain("sample", folder, "count=2"),
    "sample the file": lambda gantrain, folder: gantrain(
        "sample", checkpoints.list_files(folder / "checkpoints")[0], "count=2"
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# Pickles that call something


class Call:
    """Unpickled, it calls `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.reduced


def operations(canary: str) -> dict[str, bytes]:
    """Pickles written by hand, one for each opcode that imports or calls."""
    argument = b"X" + struct.pack("<I", len(canary)) + canary.encode()
    return {
        "GLOBAL REDUCE": b"\x80\x02cos\nmkdir\n" + argument + b"\x85R.",
        "INST": b"(" + argument + b"ios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\n" + argument + b"o.",
        "NEWOBJ": b"\x80\x02cos\nmkdir\n" + argument + b"\x85\x81.",
        "BUILD": b"\x80\x02ccollections\nOrderedDict\n)R}X\x08\x00\x00\x00__dict__cos\nmkdir\nsb.",
        "BINPERSID": b"\x80\x02(X\x07\x00\x00\x00storagecos\nmkdir\n" + argument + b"\x85RtQ.",
        "memo bomb": b"\x80\x02" + b"]q\x00(h\x00h\x00h\x00e" * 40 + b".",
        "length without bytes": b"\x80\x02X\xff\xff\xff\x7fabc.",
        "long number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "nothing": b"",
    }


def calls(canary: str) -> dict[str, Call]:
    """What a pickle can ask for by way of `__reduce__`."""
    return {
        "os.mkdir": Call(os.mkdir, canary),
        "os.system": Call(os.system, f"mkdir {canary}"),
        "eval": Call(eval, f"__import__('os').mkdir({canary!r})"),
        "open": Call(open, canary, "w"),
        "subprocess.Popen": Call(__import__("subprocess").Popen, ["mkdir", canary]),
        "importlib.import_module": Call(__import__("importlib").import_module, "this"),
        "functools.partial": Call(__import__("functools").partial, os.mkdir, canary),
        "pickle.loads": Call(pickle.loads, operations(canary)["GLOBAL REDUCE"]),
        "torch.hub.load": Call(torch.hub.load, "nobody/nothing", "x"),
        "a state": Call(dict, state={"__class__": os.mkdir}),
        "socket": Call(__import__("socket").create_connection, ("127.0.0.1", 9)),
    }


PLACES = {
    "alone": lambda payload, bundle: payload,
    "in the config": lambda payload, bundle: bundle | {"config": {"seed": payload}},
    "in the state": lambda payload, bundle: bundle | {"state": bundle["state"] | {"generator": payload}},
    "beside the parts": lambda payload, bundle: bundle | {"more": payload},
    "as a list's item": lambda payload, bundle: bundle | {"data": {"shape": [payload]}},
}


def with_pickle(content: bytes, original: bytes) -> bytes:
    """The checkpoint `original` with another `data.pkl`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(original)) as old, zipfile.ZipFile(buffer, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, content if member.filename.endswith("data.pkl") else old.read(member))
    return buffer.getvalue()


@pytest.mark.parametrize("name", calls("canary"))
def test_a_checkpoint_calls_nothing(
    gantrain: Gantrain, received: Path, tmp_path: Path, tried, times, name: str
) -> None:
    canary = str(tmp_path / "executed")
    path, bundle = only_checkpoint(received)
    payload, turn = calls(canary)[name], list(calls("canary")).index(name)
    places = list(PLACES.values())
    for number, place in enumerate(places if times.soak else [places[turn % len(places)]]):
        contents = [saved(place(payload, bundle)), pickle.dumps(place(payload, bundle))]
        for content in contents if times.soak else [contents[turn % 2]]:
            with tried("a checkpoint that calls something"):
                put(path, content)
                for command in COMMANDS.values() if number == 0 else [COMMANDS["resume"]]:
                    assert_refused(command(gantrain, received))
                assert not Path(canary).exists()


@pytest.mark.parametrize("name", operations("canary"))
def test_no_opcode_calls_anything(gantrain: Gantrain, received: Path, tmp_path: Path, tried, name: str) -> None:
    canary = str(tmp_path / "executed")
    path, _ = only_checkpoint(received)
    content = operations(canary)[name]
    for hostile in (content, with_pickle(content, path.read_bytes())):
        with tried("a pickle written by hand"):
            put(path, hostile)
            assert_refused(COMMANDS["resume"](gantrain, received))
            assert_refused(COMMANDS["sample"](gantrain, received))
            assert not Path(canary).exists()


# ---------------------------------------------------------------------------------------------------------------------
# Bundles that are none


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def repeated() -> Any:
    value: Any = []
    for _ in range(40):
        value = [value] * 10
    return value


def itself() -> dict:
    value: dict = {}
    value["again"] = value
    return value


def weight(bundle: dict) -> tuple[dict, str]:
    state = dict(bundle["state"]["generator"])
    return state, next(iter(state))


def with_weight(bundle: dict, change: Callable[[torch.Tensor], Any]) -> dict:
    """The bundle with one weight of every copy of the generator changed."""
    state, key = weight(bundle)
    copies = {name: {**bundle["state"][name], key: change(state[key])} for name in ("generator", "average")}
    return bundle | {"state": bundle["state"] | copies}


def wide(bundle: dict) -> dict:
    """Tables of networks that no memory holds."""
    row = {"op": "linear", "features": 65536, "activation": "relu"}
    tables = {"generator": [row] * 50 + [{"op": "linear", "features": "data"}], "discriminator": [row] * 50}
    architecture = bundle["generator"]["architecture"] | tables
    generator = bundle["generator"] | {"architecture": architecture}
    return bundle | {"generator": generator, "config": bundle["config"] | {"architecture": architecture}}


BUNDLES: dict[str, Callable[[dict], Any]] = {
    "a list": lambda b: [b],
    "nothing": lambda b: None,
    "without state": lambda b: {k: v for k, v in b.items() if k != "state"},
    "without generator": lambda b: b | {"state": {}},
    "another format": lambda b: b | {"format": 99},
    "a clock below zero": lambda b: b | {"images": -1},
    "a clock without end": lambda b: b | {"images": 10**30},
    "nan": lambda b: with_weight(b, lambda w: torch.full_like(w, torch.nan)),
    "another shape": lambda b: with_weight(b, lambda w: w[:1]),
    "another type": lambda b: with_weight(b, lambda w: w.double()),
    "numbers in place of a weight": lambda b: with_weight(b, lambda w: w.tolist()),
    "a missing weight": lambda b: b | {"state": b["state"] | {n: {} for n in ("generator", "average")}},
    "a weight too many": lambda b: (
        b | {"state": b["state"] | {n: {**b["state"][n], "x": torch.ones(1)} for n in ("generator", "average")}}
    ),
    "a tensor of a million million": lambda b: with_weight(b, lambda w: torch.zeros(1).expand(10**6, 10**6)),
    "many large ones": lambda b: b | {"data": {"x": [torch.zeros(1).expand(10**4)] * 10**4}},
    "sparse": lambda b: with_weight(b, lambda w: w.to_sparse()),
    "deep": lambda b: b | {"config": {"x": nested(200)}},
    "repeated without end": lambda b: b | {"config": {"x": repeated()}},
    "it holds itself": lambda b: b | {"config": itself()},
    "a set": lambda b: b | {"config": {"x": {1, 2}}},
    "networks without end": wide,
    "an architecture that is none": lambda b: (
        b | {"generator": b["generator"] | {"architecture": 5}, "config": b["config"] | {"architecture": 5}}
    ),
    "latents that are none": lambda b: (
        b
        | {"generator": b["generator"] | {"latent": {"size": -1, "prior": "x"}}, "config": b["config"] | {"latent": 5}}
    ),
    "rows that are none": lambda b: (
        b
        | {
            "generator": b["generator"] | {"architecture": {"generator": "x"}},
            "config": b["config"] | {"architecture": {"generator": "x"}},
        }
    ),
    "a shape that is none": lambda b: b | {"data": b["data"] | {"shape": ["x"], "fingerprint": "x"}},
    "no data": lambda b: b | {"data": {}},
    "a shape without end": lambda b: b | {"data": b["data"] | {"shape": [10**9, 10**9], "fingerprint": "x"}},
    "a config that is none": lambda b: {**b, "config": {"train": 5}, "generator": {}},
    "an unknown key": lambda b: {**b, "config": b["config"] | {"stpes": 5}, "generator": {}},
    "escapes in keys": lambda b: b | {"state": {ESCAPES: {ESCAPES: torch.tensor(torch.nan)}}},
    "an optimizer that is none": lambda b: b | {"state": b["state"] | {"generator_optimizer": 5, "average": {}}},
    "statistics that are none": lambda b: b | {"state": b["state"] | {"statistics": {"x": "y"}, "average": {}}},
}
# What ends as another refusal than that of a checkpoint: the config in it is checked as the user's own is.
OTHER_CODES = {2, 4, 8}


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_that_is_none_is_refused(gantrain: Gantrain, received: Path, tmp_path: Path, tried, name: str) -> None:
    path, bundle = only_checkpoint(received)
    put(path, saved(BUNDLES[name](bundle)))
    for command in ("resume", "sample"):
        with tried("a checkpoint that is none"):
            answer = COMMANDS[command](gantrain, received)
            assert answer.code in (OTHER_CODES if command == "resume" else {4}), answer
            assert answer.err.startswith("gantrain: ")
            assert not [word for word in ("Traceback", "internal error") if word in answer.err], answer.err
            assert answer.err.replace("\n", "").isprintable()
            assert "\r" not in answer.err
            assert len(answer.err.splitlines()) <= 20


def zipped(original: bytes, kind: str) -> bytes:
    """The checkpoint as an archive that is more, or other, than it seems."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(original)) as old:
        members = {member.filename: old.read(member) for member in old.infolist()}
    method = zipfile.ZIP_DEFLATED if kind in ("packed", "bomb") else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as new:
        for name, content in members.items():
            name = f"../{name}" if kind == "leads out" else name
            new.writestr(name, bytes(16 * 2**20) if kind == "bomb" and name.endswith("/data/0") else content)
    content = buffer.getvalue()
    return content[:-30] if kind == "cut" else content


@pytest.mark.parametrize("kind", ["packed", "bomb", "leads out", "cut"])
def test_an_archive_with_a_trick_is_refused(
    gantrain: Gantrain, received: Path, tmp_path: Path, tried, kind: str
) -> None:
    path, _ = only_checkpoint(received)
    put(path, zipped(path.read_bytes(), kind))
    before = {found for found in tmp_path.rglob("*") if found.name != ".lock"}
    with tried("a checkpoint that is another archive"):
        assert_refused(COMMANDS["sample"](gantrain, received))
        assert_refused(COMMANDS["resume"](gantrain, received))
        assert {found for found in tmp_path.rglob("*") if found.name != ".lock"} == before


# ---------------------------------------------------------------------------------------------------------------------
# Run folders

CALL = {"_target_": "os.mkdir", "path": "CANARY"}
CONFIG = {
    "seed": [1, 2, 3],
    "dataset": {"label": "${oc.env:GANTRAIN_SECRET}"},
    "architecture": {"object": "os:mkdir"},
    "hydra": {"launcher": CALL, "callbacks": {"x": CALL}},
}
YAML = {
    "configs": yaml.safe_dump(CALL | CONFIG).encode(),
    "python": b"a: !!python/object/apply:os.mkdir [CANARY]",
    "nested": b"[" * 10**5,
    "bytes": b"\xff",
}


@pytest.mark.parametrize("name", YAML)
def test_the_yaml_of_a_run_is_not_what_is_run(
    gantrain: Gantrain, received: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried, name: str
) -> None:
    """What is resumed is the config inside the checkpoint; that of the folder is only compared with it."""
    monkeypatch.setenv("GANTRAIN_SECRET", "hush-hush")
    canary = tmp_path / "executed"
    text = YAML[name].replace(b"CANARY", str(canary).encode())
    for file in ("config.yaml", "hydra.yaml", "overrides.yaml"):
        (received / ".hydra" / file).write_bytes(text)
    with tried("a run folder's YAML"):
        answer = COMMANDS["resume"](gantrain, received)
        assert (answer.code, answer.err) == (0, "")
        assert COMMANDS["sample"](gantrain, received).code == 0
        assert not canary.exists()
        assert yaml.safe_load((received / ".hydra/config.yaml").read_text())["train"]["images"] == 120
        assert not [path for path in received.rglob("*") if path.is_file() and b"hush-hush" in path.read_bytes()]


INSIDE: dict[str, Callable[[dict], dict]] = {
    "object": lambda c: c | {"architecture": c["architecture"] | {"object": "antigravity:x"}},
    "target": lambda c: c | {"latent": c["latent"] | {"_target_": "os.mkdir", "path": "executed"}},
    "hydra": lambda c: c | {"hydra": {"launcher": {"_target_": "os.mkdir", "path": "executed"}}},
    "evaluation": lambda c: c | {"seed": "${eval:1+1}"},
    "cycle": lambda c: c | {"seed": "${seed}"},
    "decoded": lambda c: c | {"seed": "${oc.decode:'${oc.env:HOME}'}"},
    "optimizer": lambda c: c | {"optimizer": c["optimizer"] | {"name": "os.system"}},
    "zero byte": lambda c: c | {"dataset": c["dataset"] | {"root": "a\0b"}},
}


@pytest.mark.parametrize("name", INSIDE)
def test_the_config_in_a_checkpoint_runs_nothing(
    gantrain: Gantrain, received: Path, tmp_path: Path, tried, name: str
) -> None:
    path, bundle = only_checkpoint(received)
    put(path, saved(bundle | {"config": INSIDE[name](bundle["config"])}))
    with tried("a checkpoint's config"):
        answer = COMMANDS["resume"](gantrain, received)
        assert answer.code in (2, 4), answer
        assert "Traceback" not in answer.err
        assert "internal error" not in answer.err
        assert not (tmp_path / "executed").exists()
        assert "antigravity" not in sys.modules


@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_an_interpolation_that_is_broken_off_is_refused(
    gantrain: Gantrain, received: Path, tried, command: str
) -> None:
    path, bundle = only_checkpoint(received)
    config = bundle["config"] | {"dataset": bundle["config"]["dataset"] | {"label": "${"}}
    put(path, saved(bundle | {"config": config}))
    with tried("a checkpoint's config"):
        answer = gantrain(command, received)
        assert answer.code == 4, answer
        assert "Traceback" not in answer.err
        assert "internal error" not in answer.err


def test_a_secret_that_a_checkpoint_asks_for_is_in_no_file(
    gantrain: Gantrain, received: Path, monkeypatch: pytest.MonkeyPatch, tried
) -> None:
    monkeypatch.setenv("GANTRAIN_SECRET", "hush-hush")
    path, bundle = only_checkpoint(received)
    (received / ".hydra/config.yaml").unlink()  # which has another label
    dataset = bundle["config"]["dataset"] | {"label": "${oc.env:GANTRAIN_SECRET}"}
    put(path, saved(bundle | {"config": bundle["config"] | {"dataset": dataset}}))
    with tried("a checkpoint's config"):
        assert COMMANDS["resume"](gantrain, received).code == 0
        assert COMMANDS["sample"](gantrain, received).code == 0
        assert not [file for file in received.rglob("*") if file.is_file() and b"hush-hush" in file.read_bytes()]


SUMMARIES = {
    "escapes": json.dumps({"status": ESCAPES, "reason": ESCAPES, "started": ESCAPES}),
    "kinds": json.dumps({"status": ["finished"], "seconds": "x", "resumed_at_images": 5, "metrics": "x", "images": []}),
    "deep": "[" * 100_000,
    "empty": "",
    "nan": '{"status": NaN, "seconds": 1e999}',
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_summary_of_others_steers_nothing(gantrain: Gantrain, received: Path, tried, name: str) -> None:
    (received / "summary.json").write_text(SUMMARIES[name])
    with tried("a run folder's summary"):
        for command in ("resume", "sample"):
            answer = COMMANDS[command](gantrain, received)
            assert answer.code in (0, 4), answer
            assert (answer.out + answer.err).replace("\n", "").isprintable()
            assert "internal error" not in answer.err


LINKS = ("checkpoints", "samples/seed0", ".lock", "metrics.jsonl", ".hydra/config.yaml", "checkpoints/last.pt")


def seen(folder: Path) -> dict[Path, tuple]:
    files = {path: path.lstat() for path in (folder, *folder.rglob("*"))}
    return {path: (status.st_mode, status.st_mtime_ns, status.st_size) for path, status in files.items()}


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_a_link(
    gantrain: Gantrain, received: Path, tmp_path: Path, tried, name: str
) -> None:
    place, outside = received / name, tmp_path / "outside"
    outside.mkdir()
    target = outside / "target"
    if place.is_dir():
        shutil.move(place, target)
    elif place.suffix or name in (".lock",):
        target.write_text("mine\n")
        place.unlink(missing_ok=True)
    else:
        target.mkdir()
    place.symlink_to(target)
    before = seen(outside)
    resumed = gantrain("train", *TINY, "dataset=ring", "train.images=120", f"run_dir={received}", "resume=auto")
    for answer in (COMMANDS["resume"](gantrain, received), COMMANDS["sample"](gantrain, received), resumed):
        with tried("a link in a run folder"):
            assert_refused(answer)
            assert "is a link" in answer.err
            assert seen(outside) == before


@pytest.mark.parametrize(
    "name", ["summary.json", "metrics.jsonl", "train.log", "checkpoints/images_000000000120.pt", ".lock"]
)
def test_a_pipe_is_not_waited_for(gantrain: Gantrain, received: Path, tried, name: str) -> None:
    (received / name).unlink(missing_ok=True)
    os.mkfifo(received / name)
    with tried("a pipe in a run folder"):
        assert_refused(COMMANDS["resume"](gantrain, received))
        assert COMMANDS["sample"](gantrain, received).code in (0, 4)
        assert stat.S_ISFIFO((received / name).lstat().st_mode)


# ---------------------------------------------------------------------------------------------------------------------
# Names


NAMES = ["\x1b[31mred[red]markup\u202eleft\rback\ttab\x07bell", "two\nlines", "$(touch x)'; x"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_never_steers_the_terminal(gantrain: Gantrain, received: Path, tmp_path: Path, tried, name: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / name).write_bytes(b"no picture")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "fine.png")
    sweep = tmp_path / "sweep"
    shutil.copytree(received, sweep / name)
    path, bundle = only_checkpoint(received)
    (received / ".hydra/config.yaml").unlink()  # which has another label
    dataset = bundle["config"]["dataset"] | {"label": name}
    put(path, saved(bundle | {"config": bundle["config"] | {"dataset": dataset}}))
    typed = ("dataset=folder", f"dataset.path={folder}", "dataset.size=8", "architecture=conv8", "train.batch_size=1")
    with tried("a name that steers a terminal"):
        for answer, code in (
            (gantrain("train", *typed, "run_dir=a"), 3),
            (gantrain("resume", sweep), 4),
            (gantrain("sample", sweep), 4),
            (gantrain("resume", received, "train.images=120"), 0),
            (gantrain("resume", received, "dataset.label=x"), 4),
        ):
            assert answer.code == code, answer
            shown = answer.out + answer.err
            assert shown.replace("\n", "").isprintable()
            if "\n" in name:
                assert not [line for line in shown.splitlines() if line.startswith("lines")], shown


# ---------------------------------------------------------------------------------------------------------------------
# The network

CONNECTIONS = ("socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
CAUGHT = 97


def without_network() -> None:
    """Any socket of the internet, any look-up of a name and any listening ends the process at once."""

    def watch(event: str, arguments: tuple) -> None:
        if event in CONNECTIONS or (event == "socket.__new__" and arguments[1] in (2, 10)):
            os.write(2, f"{event} {arguments}\n".encode())
            os._exit(CAUGHT)

    sys.addaudithook(watch)


def look_up() -> None:
    without_network()
    __import__("socket").getaddrinfo("localhost", 9)


@pytest.mark.parametrize("data", ["digits", "ring", "folder"])
def test_training_on_local_data_opens_no_connection(tmp_path: Path, tried, times, data: str) -> None:
    if data != "folder" and not times.soak:
        pytest.skip("one kind of data is enough in the fast form")
    for number in range(30):
        path = tmp_path / "pictures" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    own = [f"dataset.path={tmp_path / 'pictures'}", "dataset.size=8", "architecture=conv8"] if data == "folder" else []
    typed = [*TINY, f"dataset={data}", *own, "train.images=80", f"run_dir={tmp_path / 'run'}"]
    with tried("a connection to the network"):
        code, output = run(tmp_path / "log", "train", *typed, fault=without_network)
        assert code == 0, output
        code, output = run(tmp_path / "log2", "sample", tmp_path / "run", "count=2", fault=without_network)
        assert code == 0, output


def test_a_connection_would_be_seen(tmp_path: Path) -> None:
    assert run(tmp_path / "log", "--version", fault=look_up)[0] == CAUGHT


def test_the_payloads_would_work(tmp_path: Path) -> None:
    """A reader that trusts a pickle runs them: what the canary proves is no matter of chance."""
    for number, name in enumerate(("GLOBAL REDUCE", "INST", "OBJ")):
        canary = tmp_path / str(number)
        pickle.loads(operations(str(canary))[name])
        assert canary.is_dir()
    for name in ("os.mkdir", "os.system", "eval"):
        canary = tmp_path / name
        pickle.loads(pickle.dumps(calls(str(canary))[name]))
        assert canary.is_dir()
