"""The command line as its users meet it: real commands, real runs of a hundred images, and what they leave behind."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from faults import processes
from PIL import Image
from support.waiting import PATIENCE_SECONDS, wait_until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gantrain as package
from gantrain import plotting
from gantrain.cli import COMMANDS, main
from gantrain.config.groups import CONF, options
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.heads import HEADS
from gantrain.objectives.objective import GENERATOR_OBJECTIVES

Gantrain = Callable[..., Any]

SHORT = (
    *("device=cpu", "train.batch_size=20", "train.held_out_images=40", "train.checkpoint_min_seconds=0"),
    *("train.report_every_images=40", "train.sample_every_images=80", "train.checkpoint_every_images=40"),
)
TINY = (*SHORT, "train.images=100")
PROGRAM = [sys.executable, "-m", "gantrain.cli"]
SAFE = re.compile(r"[A-Za-z0-9._-]+")
ESCAPE = "\x1b[31m"


pytestmark = pytest.mark.usefixtures("plain_figures")


def process(*arguments: object, **keywords: Any) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False, **keywords)


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def reports(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def pictures(folder: Path, count: int = 60, size: int = 8) -> Path:
    """A folder of coloured PNGs in two class folders."""
    numbers = np.random.default_rng(0)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run on pictures that are no longer there; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    images = pictures(folder / "images")
    typed = ("dataset=folder", f"dataset.path={images}", "dataset.size=8", "architecture=conv8", "gen_div=kl")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["gantrain"])
        assert main(["train", *TINY, *typed, f"run_dir={folder / 'run'}"]) == 0
    shutil.rmtree(images)
    yield folder / "run"
    assert summary(folder / "run")["status"] == "finished"


# ---------------------------------------------------------------------------------------------------------------------
# Help


def test_the_bare_program_names_its_commands_at_once() -> None:
    code = "import sys; from gantrain.cli import main; main([]); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name, line in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", shown, re.MULTILINE)
    packages = {name.partition(".")[0] for name in shown.split()}
    assert not packages & {"torch", "numpy", "hydra", "omegaconf", "rich", "yaml"}


def test_configuration_errors_wait_for_nothing() -> None:
    """One after the other in one process, none of them imports a slow package."""
    wrong = [
        *(["gen_div=kll"], ["optimizer.lr=-1"], ["optimizer.lrr=1"], ["device=gpu"], ["architecture.leaky_slope=2"]),
        *(["dataset=ring", "train.epochs=2"], ["dataset=mixture1d", "dataset.weights=[1]"]),
    ]
    code = f"""
import sys
from gantrain.cli import main
assert [main(["train", *each]) for each in {wrong}] == [2] * {len(wrong)}
print(*({{"torch", "numpy", "matplotlib", "tensorboard"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


@pytest.mark.parametrize(
    ("wrong", "both"),
    [
        (["dataset=mnist", "architecture=dcgan64"], ["1×28×28", "1×64×64"]),
        (["dataset=folder", "dataset.path=missing", "dataset.size=48"], ["3×48×48"]),
        (["dataset=ring", "architecture=appendix"], ["2"]),
    ],
)
def test_networks_that_cannot_fit_are_refused_before_data_are_looked_for(
    gantrain: Gantrain, wrong: list[str], both: list[str]
) -> None:
    answer = gantrain("train", *wrong)
    assert answer.code == 2
    for shape in both:
        assert shape in answer.err
    assert not list(Path.cwd().iterdir()), "nothing was made"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(gantrain: Gantrain, command: str) -> None:
    answer = gantrain(command, "seed=1", "--help")
    assert (answer.code, answer.err) == (0, "")
    assert f"\n  gantrain {command}" in answer.out
    assert re.search(rf"\nExamples\n  gantrain {command}", answer.out)


def test_the_version(gantrain: Gantrain) -> None:
    assert re.fullmatch(r"gantrain \d+\.\d+\.\d+(\.dev\d+)?\n", gantrain("--version").out)
    assert gantrain("version") == gantrain("-V") == gantrain("--version")
    assert gantrain("help") == gantrain("--help")
    assert "gantrain --version" in gantrain("--help").out


def test_a_reader_that_has_gone_is_no_error() -> None:
    shell = f"set -o pipefail; {sys.executable} -m gantrain.cli train --help | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code"), [("--cfg job >&-", 0), ("sed=1 <&- >&- 2>&-", 2)], ids=["output", "all"]
)
def test_standard_streams_may_be_closed(tmp_path: Path, arguments: str, code: int) -> None:
    """As in a program that a daemon starts."""
    shell = f"{sys.executable} -m gantrain train {arguments}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (code, b"")


@pytest.mark.parametrize(
    ("encoding", "code", "arguments"),
    [
        ("ascii", 0, ["--help"]),
        ("latin-1", 0, ["divergences", "kl"]),
        ("latin-1", 2, ["train", "gen_div=ĸ"]),
    ],
)
def test_what_a_locale_cannot_show_is_replaced(tmp_path: Path, encoding: str, code: int, arguments: list[str]) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [*PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == code, done.stderr
    assert b"?" in done.stdout + done.stderr
    assert b"Error" not in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Flags


def test_flags_stand_before_and_after_overrides(gantrain: Gantrain) -> None:
    shown = gantrain("train", "dataset=ring", "seed=3", "--cfg", "job")
    assert (shown.code, shown.err) == (0, "")
    assert yaml.safe_load(shown.out)["dataset"]["name"] == "ring"
    for arguments in (["--cfg", "job", "dataset=ring", "seed=3"], ["dataset=ring", "-c", "job", "seed=3"]):
        assert gantrain("train", *arguments) == shown


def test_parts_of_the_config_and_hydras_own_are_shown(gantrain: Gantrain) -> None:
    shown = gantrain("train", "seed=3", "--cfg", "job", "-p", "latent")
    assert shown.out == "# @package latent\nsize: 64\nprior: normal\n"
    resolved = gantrain("train", "seed=3", "latent.size=${seed}", "--cfg", "job", "--resolve")
    assert yaml.safe_load(resolved.out)["latent"]["size"] == 3
    assert "run:\n    dir: ${run_dir}" in gantrain("train", "--cfg", "hydra").out
    assert "Hydra" in gantrain("train", "--hydra-help").out
    chosen = process("train", "dataset=ring", "-i", "searchpath")  # Hydra logs it
    assert (chosen.returncode, "catalogue://" in chosen.stdout) == (0, True)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--multi", "gen_div=kl,js"], ["--cfg", "nothing"], ["--cfg"], ["--nope"], ["--info", "dataset=ring"]),
        *(["--experimental-rerun", "x.pickle"], ["--config-path", "."], ["-cn", "other"], ["--run"]),
        *(["--config-dir", "missing"], ["seed=range(0,3)"], ["gen_div=glob(*)"], ["--cfg", "job", "gen_div=kl,js"]),
        *(["--cfg", "job", "train.images=-1"], ["-m", "dataset.name=mnist,ring"], ["architecture.name=dcgan28"]),
        *(["-m", "gen_div=kl,kll"], ["-m", "gen_div=kl,js", "train.images=-1"], ["-m", "seed=range(-2,0)"]),
    ],
    ids=" ".join,
)
def test_a_bad_command_line_is_refused_and_leaves_nothing(
    gantrain: Gantrain, tmp_path: Path, arguments: list[str]
) -> None:
    answer = gantrain("train", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("gantrain: ")
    assert len(answer.err.splitlines()) <= 4
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["train", "hydra.run.dir=X"], "hydra.run.dir=X: the folder of a run is given as run_dir=X"),
        (["train", "-m", "seed=0,1", "hydra.sweep.dir=X"], "the folder of a sweep is given as run_dir=X"),
        (["train", "hydra.foo=1"], "there is no key hydra.foo; gantrain train --cfg hydra shows Hydra's own"),
        (["train", "+hydra.foo=1"], "there is no key hydra.foo"),
        (["train", "hydra.job.nme=x"], "there is no key hydra.job.nme; gantrain train --cfg hydra"),
        (["train", "train.batch_size=1"], "leaves batch norm a single number to average; choose"),
        (["train", "gen_div=alpha_1e9"], "alpha_1e9 leaves float32's range already beside r = 0: f(u) ="),
        (["train", "--cfg", "job", "-p", "trian"], "--package=trian is not one of the choices; did you mean train?"),
        (["train", "--cfg", "hydra", "-p", "train"], "a part of --cfg job; give it with that"),
        (["train", "-p", "train"], "--package=train shows a part of --cfg job"),
        (["train", "--resolve"], "add --cfg job"),
        (["train", "--info", "-m", "seed=0,1"], "--info shows one job; leave -m and the listed values out"),
        (["train", "--info", "config", "--cfg", "job"], "one of --cfg, --info and --hydra-help"),
        (["train", "logger=wandb"], "logger=wandb must be a list, as in logger=[tensorboard,wandb]"),
        (["train", "dataset.weights=1"], "dataset.weights=1 must be a list, as in dataset.weights=[1,2]"),
        (["train", "device=gpu"], "device=gpu is called device=cuda here"),
        (["train", "device=GPU:1"], "device=GPU:1 is called device=cuda:1 here"),
        (["train", "-m", "gen_div=kl,js,kl"], "gen_div=kl,js,kl lists gen_div=kl more than once"),
        (["train", "resume=auto"], "resume=auto goes on with what is in run_dir, which is not given; add run_dir=DIR"),
        (["train", "-m", "seed=0,1", "resume=auto"], "resume=auto goes on with what is in run_dir, which is not given"),
        (["train", "-m", "run_dir=a,b"], "run_dir=a,b: a sweep has one run_dir for all its runs; give one value"),
        (["train", "-m", "resume=never,auto", "run_dir=a"], "a sweep has one resume for all its runs"),
        (["train", "-m", "seed=range(0,10,0)"], "seed=range(0,10,0) has no end, because its step is 0; give another"),
        (["train", "-m", "gen_div=range(0.5,1,0.0)"], "has no end, because its step is 0"),
        (["train", "-m", "seed=range(5,0)", "run_dir=s"], "seed=range(5,0) lists no values; list some"),
        (["-sc", "install=foo"], "-sc install=foo: it takes install=SHELL or uninstall=SHELL, of bash, fish and zsh"),
        (["-sc"], 'eval "$(gantrain -sc install=bash)"'),
        (["train", "-m", "optimizer.lr=1e-3,0.001"], "lists optimizer.lr=0.001 more than once"),
        (
            ["train", "best.metric=diversity/class_entropy", "evaluate.every_images=1"],
            "neither more nor less is better",
        ),
        (["experiment=paper"], "did you mean gantrain train experiment=paper?"),
        (["-m", "gen_div=kl,js"], "did you mean gantrain train -m gen_div=kl,js?"),
        (["tran", "dataset=ring"], "did you mean train?"),
        (["train", "--epochs", "5"], "no flag --epochs; keys are written without dashes, as in train.epochs=5"),
        (["train", "-m", "--lr=1e-3", "seed=0,1"], "as in optimizer.lr=1e-3"),
        (["train", "--batch-size", "seed=1"], "as in train.batch_size=…"),
        (["train", "--conditional"], "no flag --conditional; keys are written without dashes, as key=value"),
        (["sample", "--count", "9", "run"], "as in count=9"),
        (["evaluate", "run", "--metrics", "fid"], "as in metrics=fid"),
        (["compare", "run", "--out", "x"], "as in out=x"),
        (["divergences", "kl", "--affine=1"], "as in affine=1"),
        (["architecture", "mlp", "--latent", "3"], "as in latent=3"),
        (["resume"], "resume needs a run folder"),
        (["sample", "seed=1"], "sample needs a run folder"),
        (["architecture", "latent=3"], "architecture needs a name"),
        (["sample", "run", "count=abc"], "count=abc must be a whole number"),
        (["fit", "stds=abc"], "stds=abc must be a list"),
        (["evaluate", "dataset=digits", "train_classifier.epochs=abc"], "epochs=abc must be a whole number"),
        (["evaluate", "run", "reference=maybe"], "reference=maybe must be true or false"),
    ],
)
def test_the_way_out_is_said(gantrain: Gantrain, tmp_path: Path, arguments: list[str], rule: str) -> None:
    answer = gantrain(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert rule in answer.err
    assert len(answer.err.splitlines()) <= 2
    assert not any(tmp_path.iterdir())


def test_completion_offers_commands_then_the_keys_and_choices_of_train(
    gantrain: Gantrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def completed(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        answer = gantrain("-sc", "query=bash")
        assert (answer.code, answer.err) == (0, "")
        return answer.out.split()

    assert completed("gantrain ") == list(COMMANDS)
    assert completed("gantrain tr") == ["train"]
    assert completed("gantrain train gen_div=kl") == ["gen_div=kl"]
    assert completed("gantrain train gen_div=") == [f"gen_div={name}" for name in sorted(CATALOGUE)]
    assert completed("gantrain train dataset=ring optimizer=") == [f"optimizer={o}" for o in options("optimizer")]
    assert "train.images=" in " ".join(completed("gantrain train train.im"))
    assert completed("gantrain train --c") == ["--cfg", "--config-dir"]
    assert completed("gantrain train -m --cfg job --config-dir here dataset=ri") == ["dataset=ring"]
    assert completed("gantrain train --cfg dataset=ri") == []
    assert "seed=" in completed("gantrain train ")
    assert completed("gantrain sample ") == []
    assert completed("gantrain nothing gen") == []


def test_bash_itself_completes(tmp_path: Path) -> None:
    script = r"""
        eval "$(gantrain -sc install=bash)"
        complete -p gantrain
        COMP_LINE='gantrain train dataset=ri' COMP_POINT=25 COMP_CWORD=2
        hydra_bash_completion
        printf '%s\n' "${COMPREPLY[@]}"
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        **{"capture_output": True, "text": True, "check": False, "cwd": tmp_path, "env": {**os.environ, "PATH": path}},
    )
    assert "-F hydra_bash_completion gantrain" in done.stdout
    assert done.stdout.splitlines()[-1] == "dataset=ring"


def test_windows_is_told_what_works(gantrain: Gantrain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    answer = gantrain("--help")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == "gantrain: gantrain runs on Linux and macOS; on Windows, run it in WSL\n"


def test_too_little_memory_for_torch_is_said(tmp_path: Path) -> None:
    command = f"ulimit -v 900000; exec {sys.executable} -m gantrain.cli train"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (8, 2), done.stderr
    assert "ulimit -v" in done.stderr


def test_a_deleted_working_directory(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for run_dir, code in (([], 7), (["run_dir=run"], 7), ([f"run_dir={tmp_path}/run"], 0)):
        fault = partial(processes.delete_working_directory, gone)
        found, output = processes.run(tmp_path / "log", "train", *TINY, *run_dir, fault=fault)
        assert found == code, output
        assert f"{gone} was deleted" in output
    assert summary(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize("place", ["gantrain.cli.dispatch", "gantrain.launch.run.build"])
@pytest.mark.parametrize(
    ("module", "package"),
    [("torch", "torch"), ("PIL._imaging", "pillow"), ("omegaconf", "omegaconf"), ("numpy.core", "numpy")],
)
def test_a_broken_package_is_named_with_its_repair(
    gantrain: Gantrain, monkeypatch: pytest.MonkeyPatch, place: str, module: str, package: str
) -> None:
    """Also one that a run needs later, and one whose error names no module, as numpy's own."""

    def fail(*arguments: object) -> None:
        if package == "numpy":
            exec("raise ImportError('\\n\\nno such symbol\\nadvice')", {"__name__": module})
        raise ImportError("no such symbol", name=module)

    monkeypatch.setattr(place, fail)
    answer = gantrain("train", "run_dir=run")
    assert (answer.code, len(answer.err.splitlines())) == (1, 1)
    assert f"{package} cannot be imported: no such symbol" in answer.err
    assert f"pip install --force-reinstall {package}" in answer.err


def test_settings_of_matplotlib_cost_a_picture_at_most(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe")
    done = process("train", *TINY, "run_dir=run", cwd=tmp_path)
    assert (done.returncode, summary(tmp_path / "run")["status"]) == (0, "finished"), done.stderr
    assert done.stdout.count("matplotlib cannot be loaded, look at MPLBACKEND and matplotlibrc") == 1
    assert not (tmp_path / "run/losses.png").exists()
    done = process("compare", "run", cwd=tmp_path)
    assert (done.returncode, "look at MPLBACKEND and matplotlibrc" in done.stderr) == (2, True)


def test_a_name_outside_the_locale_costs_the_event_file_at_most(tmp_path: Path) -> None:
    """What the locale cannot show is replaced, and a backend that is not there is not needed."""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    environment = {**os.environ, **ascii_only, "MPLBACKEND": "nonsense"}
    done = process("train", *TINY, "run_dir=é", cwd=tmp_path, env=environment, encoding="ascii")
    assert (done.returncode, summary(tmp_path / "é")["status"]) == (0, "finished"), done.stderr
    assert done.stdout.count("TensorBoard takes only names in UTF-8") == 1
    assert "?" in done.stdout
    assert "Error" not in done.stderr
    assert (tmp_path / "é/losses.png").exists()


# ---------------------------------------------------------------------------------------------------------------------
# A run


ENCODE_FIGURE = plotting.encode_figure


def test_a_run_folder_is_complete(gantrain: Gantrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotting, "encode_figure", ENCODE_FIGURE)
    answer = gantrain("train", *TINY, "seed=3", "gen_div=kl")
    assert (answer.code, answer.err) == (0, "")
    assert ESCAPE[0] not in answer.out
    (run,) = (tmp_path / "runs/digits/gan-kl").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-s3", run.name)
    assert os.listdir(tmp_path) == ["runs"]

    kept = ("images_000000000060.pt", "images_000000000080.pt", "images_000000000100.pt", "last.pt")
    kept = ("images_000000000040.pt", *kept[1:])
    (events,) = run.glob("events.out.tfevents.*")
    assert files(run) == {
        *(".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml", ".lock"),
        *(f"checkpoints/{name}{end}" for name in kept for end in ("", ".sha256") if name + end != "last.pt.sha256"),
        *("samples/real.png", "samples/images_000000000080.png", "samples/images_000000000100.png"),
        *("losses.png", "metrics.jsonl", "summary.json", "train.log", events.name),
    }
    for name in ("losses.png", "samples/real.png", "samples/images_000000000100.png"):
        Image.open(run / name).verify()
    assert Image.open(run / "losses.png").width > 500
    assert (run / "train.log").read_text() == answer.out

    rows = reports(run)
    assert [row["images"] for row in rows] == [40, 80, 100]
    assert {
        *("loss/discriminator", "loss/generator", "discriminator/accuracy", "grad_norm/discriminator"),
        *("grad_norm/generator", "ratio/real_mean", "ratio/fake_mean", "ratio/calibration_q", "ratio/calibration_p"),
        *("ratio/effective_sample_size", "ratio/limited_share", "ratio/largest", "speed/images_per_second"),
        *("system/free_disk_bytes", "system/checkpoint_age_seconds", *(f"bound/{name}" for name in CATALOGUE)),
    } <= rows[-1].keys()
    assert all(re.fullmatch(r"[a-z_]+/[a-z0-9_.-]+", name) for row in rows for name in row if name != "images")

    end = summary(run)
    assert (end["status"], end["reason"], end["exit_code"], end["images"]) == ("finished", "", 0, 100)
    assert end["seconds"] > 0
    assert end["images_per_second"] > 0
    assert end["metrics"] == {name: value for name, value in rows[-1].items() if name != "images"}
    assert (end["seed"], end["device"], end["samples_from"]) == (3, "cpu", "averaged generator, standing statistics")
    assert (end["data"]["label"], end["data"]["held_out"]) == ("digits", True)
    assert (end["gen_weights"], end["regularizer"]) == ({"normalise": True, "spread": 0.25}, {})
    assert (end["versions"]["gantrain"], end["versions"]["torch"]) == (package.__version__, str(torch.__version__))
    assert datetime.fromisoformat(end["started"]) <= datetime.fromisoformat(end["ended"])

    composed = yaml.safe_load((run / ".hydra/config.yaml").read_text())
    assert (composed["seed"], composed["gen_div"]["name"], composed["train"]["images"]) == (3, "kl", 100)
    assert yaml.safe_load((run / ".hydra/overrides.yaml").read_text()) == [*TINY, "seed=3", "gen_div=kl"]

    board = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = board.Tags()
    curves = {tag for tag in tags["scalars"] if not tag.startswith("supremum/")}
    assert curves == rows[-1].keys() - {"images"}
    for name in curves:
        shown = [(event.step, event.value if math.isfinite(event.value) else None) for event in board.Scalars(name)]
        with_name = [row for row in rows if name in row]  # the first report stands before the first checkpoint
        assert shown == [(row["images"], row[name] and pytest.approx(row[name])) for row in with_name]
    assert set(tags["images"]) >= {"samples"}
    assert {"log_ratio/real", "log_ratio/fake"} <= set(tags["distributions"]) | set(tags["histograms"])
    assert "gen_div" in board.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert board.PluginTagToContent("hparams")


CHOICES = {
    "regularizer": options("regularizer"),
    "augment": options("augment"),
    "head": [*HEADS],
    "gen_objective": [*GENERATOR_OBJECTIVES],
    "optimizer": options("optimizer"),
}
GAMES = {
    **{  # every choice is in at least one game
        str(number): [f"{key}={names[number % len(names)]}" for key, names in CHOICES.items()]
        for number in range(max(map(len, CHOICES.values())))
    },
    "two discriminator steps": ["train.discriminator_steps=2", "ema=0", "latent.prior=uniform", "latent.size=3"],
    "nothing held out": ["dataset.held_out=0"],
    "total variation": ["disc_div=total_variation", "gen_div=total_variation"],
    "paper": ["experiment=paper", "dataset=digits", "architecture=conv8", "gen_div=alpha_-1", "disc_div=dual_kl"],
}


@pytest.mark.parametrize("name", GAMES)
def test_every_kind_of_game_is_played_to_its_end(gantrain: Gantrain, tmp_path: Path, name: str) -> None:
    answer = gantrain("train", *TINY, *GAMES[name], f"run_dir={tmp_path / 'run'}")
    assert (answer.code, answer.err) == (0, "")
    end, last = summary(tmp_path / "run"), reports(tmp_path / "run")[-1]
    has_two_steps = name == "two discriminator steps"
    assert (end["status"], end["images"]) == ("finished", 120 if has_two_steps else 100)
    groups = ("loss/", "bound/", "training_bound/")
    losses = {key: value for key, value in last.items() if key.startswith(groups) and not key.endswith("_error")}
    assert all(value is not None and abs(value) < 1e6 for value in losses.values())
    assert ("ratio/invalid_share" in last) == ("head=ratio" in GAMES[name])
    assert ("training_bound/gan" in last) == (name == "nothing held out")
    assert ("two_sample/p_value" in last) == (name != "nothing held out")
    assert ("lower_limit/js" in last) == (name not in ("nothing held out", "total variation"))
    assert ("ratio/real_mean" in last) == (name != "total variation")
    assert end["samples_from"] == ("generator" if has_two_steps else "averaged generator, standing statistics")


@pytest.mark.parametrize("name", ["ring", "mixture1d"])
def test_densities_are_trained_on_and_sampled_from(gantrain: Gantrain, tmp_path: Path, name: str) -> None:
    assert gantrain("train", *SHORT, "train.images=20", f"dataset={name}", f"run_dir={tmp_path / 'run'}").code == 0
    Image.open(tmp_path / "run/samples/images_000000000020.png").verify()
    answer = gantrain("sample", tmp_path / "run", "count=7", "seed=5", f"out={tmp_path / 'out'}")
    assert (answer.code, answer.err) == (0, "")
    assert files(tmp_path / "out") == {"samples.npy", "scatter.png"}
    samples = np.load(tmp_path / "out/samples.npy")
    assert samples.shape == (7, 1 if name == "mixture1d" else 2)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, package.load(tmp_path / "run").sample(7, seed=5))
    assert gantrain("sample", tmp_path / "run", "count=7", "seed=5", "out=X.npz").code == 0
    np.testing.assert_array_equal(samples, np.load(tmp_path / "X.npz")["arr_0"])


def test_a_folder_of_ones_own_with_yaml_of_ones_own(gantrain: Gantrain, tmp_path: Path) -> None:
    pictures(tmp_path / "cats")
    own = tmp_path / "own yaml"
    write(
        own / "dataset/cats.yaml",
        "# @package _global_\ndefaults: [override /architecture: narrow]\n"
        f"dataset: {{name: folder, path: {tmp_path / 'cats'}, size: 8, label: cats}}\n",
    )
    table = yaml.safe_load((CONF / "architecture/conv8.yaml").read_text())
    table["discriminator"][0]["features"] = 5
    write(own / "architecture/narrow.yaml", yaml.safe_dump(table | {"name": "narrow"}))
    write(own / "experiment/mine.yaml", "# @package _global_\nlatent: {size: 9}\ngen_objective: ratio\n")
    answer = gantrain("train", *TINY, "dataset=cats", "experiment=mine", "--config-dir", own)
    assert (answer.code, answer.err) == (0, "")
    (run,) = (tmp_path / "runs/cats/gan-softened_reverse_kl-ratio").iterdir()
    generator = package.load(run).generator()
    assert (generator.shape, generator.latents.size) == ((3, 8, 8), 9)
    assert summary(run)["data"]["training_images"] == 54
    saved = torch.load(run / "checkpoints/last.pt", weights_only=True)["state"]["discriminator"]
    assert next(iter(saved.values())).shape[0] == 5

    assert gantrain("resume", run, "train.images=120").code == 0
    assert summary(run)["images"] == 120


def test_a_run_goes_where_the_user_wants_it(gantrain: Gantrain, tmp_path: Path) -> None:
    answer = gantrain("train", *SHORT, "train.images=20", r"run_dir='o\'brien\\\'s a,b=[x]{y}(ü)'")
    assert (answer.code, answer.err) == (0, "")
    assert os.listdir(tmp_path) == [r"o'brien\'s a,b=[x]{y}(ü)"]
    assert summary(tmp_path / os.listdir(tmp_path)[0])["status"] == "finished"


def test_runs_of_the_same_second_never_share_a_folder(gantrain: Gantrain, tmp_path: Path) -> None:
    """Every name that the run could take in the next ten minutes is taken."""
    parent, start = tmp_path / "runs/digits/gan-softened_reverse_kl", datetime.now()
    names = {f"{start + timedelta(seconds=s):%Y-%m-%d_%H-%M-%S}-s0" for s in range(PATIENCE_SECONDS)}
    for name in names:
        (parent / name).mkdir(parents=True)
    assert gantrain("train", *TINY, "train.images=20").code == 0
    (run,) = (path for path in parent.iterdir() if path.name not in names)
    assert run.name.removesuffix("-2") in names
    assert summary(run)["status"] == "finished"
    assert all(not any((parent / name).iterdir()) for name in names)


# ---------------------------------------------------------------------------------------------------------------------
# A folder that holds a run


def test_an_existing_run_is_never_overwritten(gantrain: Gantrain, finished: Path) -> None:
    before = {name: (finished / name).read_bytes() for name in files(finished)}
    answer = gantrain("train", *TINY, f"run_dir={finished}")
    assert (answer.code, answer.out) == (6, "")
    assert f"gantrain resume {finished}" in answer.err
    assert {name: (finished / name).read_bytes() for name in files(finished)} == before


def test_a_finished_run_has_nothing_left_to_do(gantrain: Gantrain, tmp_path: Path) -> None:
    typed = ["train", *TINY, "dataset=ring", f"run_dir={tmp_path / 'run'}", "resume=auto"]
    assert gantrain(*typed).code == 0
    kept = [path for path in (tmp_path / "run").rglob("*") if path.name != ".lock"]
    before = [path.stat().st_mtime_ns for path in kept]
    for again in (typed, ["resume", tmp_path / "run"]):
        answer = gantrain(*again)
        assert (answer.code, answer.err) == (0, "")
        assert "is finished" in answer.out
        assert [path.stat().st_mtime_ns for path in kept] == before
    answer = gantrain(*typed, "train.images=140")
    assert (answer.code, answer.err) == (0, "")
    assert summary(tmp_path / "run")["images"] == 140
    assert [row["images"] for row in reports(tmp_path / "run")] == [40, 80, 100, 120, 140]
    answer = gantrain(*typed, "seed=1")
    assert answer.code == 4
    assert "seed: 0 → 1" in answer.err


@pytest.mark.parametrize("command", ["resume", "sample"])
def test_what_cannot_be_restored_is_refused(gantrain: Gantrain, finished: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("missing", "empty", *(["missing.pt"] if command == "sample" else [])):
        answer = gantrain(command, source)
        assert (answer.code, answer.out) == (4, "")
        assert source in answer.err
    assert not any((tmp_path / "empty").iterdir())
    for part in ("checkpoints", *(["checkpoints/last.pt"] if command == "resume" else [])):
        answer = gantrain(command, finished / part)
        assert (answer.code, f"did you mean gantrain {command} {finished}?" in answer.err) == (4, True)
    damaged = shutil.copytree(finished, tmp_path / "damaged")
    for path in damaged.glob("checkpoints/*.pt"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    answer = gantrain(command, damaged)
    assert (answer.code, answer.out) == (4, "")
    assert "images_000000000100.pt" in answer.err
    assert "images_000000000080.pt" in answer.err


def test_the_folder_of_the_checkpoints_is_not_evaluated(gantrain: Gantrain, finished: Path) -> None:
    answer = gantrain("evaluate", finished / "checkpoints")
    said = (
        f"{finished / 'checkpoints'} is not a run folder with checkpoints; did you mean gantrain evaluate {finished}?"
    )
    assert (answer.code, answer.err) == (4, f"gantrain: {said}\n")


@pytest.mark.parametrize("command", ["resume", "sample", "evaluate"])
def test_a_folder_around_runs_is_answered_with_the_commands_for_them(
    gantrain: Gantrain, finished: Path, tmp_path: Path, command: str
) -> None:
    for place in ("tree/a b/run", "tree/run", "tree/of/a/sweep/0-kl", "tree/of/a/sweep/1-js", "tree/f/a/r/too/deep"):
        shutil.copytree(finished, tmp_path / place)
    write(tmp_path / "tree/of/a/sweep/multirun.yaml", "hydra: {}")
    before = files(tmp_path)
    for parent, count in (("tree", 4), ("tree/of", 2), ("tree/a b", 1)):
        answer = gantrain(command, parent)
        assert (answer.code, answer.out) == (4, "")
        runs = ["'tree/a b/run'", "tree/of/a/sweep/0-kl", "tree/of/a/sweep/1-js", "tree/run"]
        places = runs if command == "sample" else [runs[0], "tree/of/a/sweep", runs[3]]
        named = [f"  gantrain {command} {place}" for place in places if place.strip("'").startswith(f"{parent}/")]
        first = f"gantrain: {parent} is no run, but holds {count} of them; give one:"
        assert answer.err.splitlines() == [first, *named]
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("typed", "code", "says"),
    [
        ("gen_div.name=js", 4, "gen_div.name: kl → js"),
        ("train.imges=5", 2, "did you mean train.images"),
        ("train.images=0", 2, "train.images"),
        ("train.images=200,300", 2, "train.images"),
        ("~train.images", 2, "train.images"),
        ("-m", 2, "-m"),
    ],
)
def test_a_refused_resume_leaves_the_run_as_it_was(
    gantrain: Gantrain, finished: Path, tmp_path: Path, typed: str, code: int, says: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    answer = gantrain("resume", run, typed)
    assert (answer.code, answer.out) == (code, "")
    assert says in answer.err
    assert {name: (run / name).read_bytes() for name in files(finished)} == {
        name: (finished / name).read_bytes() for name in files(finished)
    }


# ---------------------------------------------------------------------------------------------------------------------
# Sweeps


def test_a_sweep_trains_every_combination(gantrain: Gantrain, tmp_path: Path) -> None:
    short = [*SHORT, "train.images=20"]
    answer = gantrain("train", "gen_div=kl,js", *short, "seed=range(3,4)", "optimizer.lr=0.5", "-m")
    assert (answer.code, answer.err) == (0, "")
    (root,) = (tmp_path / "sweeps").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", root.name)
    runs = sorted(path for path in root.iterdir() if path.is_dir())
    assert [run.name for run in runs] == ["0-gen_div-kl_seed-3", "1-gen_div-js_seed-3"]
    for run, name in zip(runs, ["kl", "js"], strict=True):
        composed = yaml.safe_load((run / ".hydra/config.yaml").read_text())
        assert (composed["gen_div"]["name"], composed["seed"], composed["optimizer"]["lr"]) == (name, 3, 0.5)
        assert summary(run)["status"] == "finished"
        assert {"losses.png", "train.log", "checkpoints/last.pt", "samples/real.png"} <= files(run)
        assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert "2 of 2 runs finished" in answer.out


def test_a_sweeps_folders_are_named_after_what_is_swept(gantrain: Gantrain, tmp_path: Path) -> None:
    """Also a glob over the catalogue, and labels that would lead elsewhere."""
    swept = ["dataset.label='../../a b','[red]ü/'", "gen_div=glob(s*_kl)"]
    answer = gantrain("train", "-m", *SHORT, "train.images=20", "run_dir=swept", *swept)
    assert (answer.code, answer.err) == (0, "")
    assert os.listdir(tmp_path) == ["swept"]
    runs = [path for path in (tmp_path / "swept").iterdir() if path.is_dir()]
    assert len(runs) == 2
    assert all("gen_div-softened_reverse_kl" in run.name and SAFE.fullmatch(run.name) for run in runs)
    assert all(summary(run)["status"] == "finished" for run in runs)


def test_a_sweep_goes_on_after_a_failure_and_exits_with_the_first_ones_code(gantrain: Gantrain, tmp_path: Path) -> None:
    answer = gantrain(
        *("train", "-m", *TINY, "train.images=20", "run_dir=sweep"),
        *("gen_div=kl,total_variation", "train.batch_size=5000,20"),
    )
    assert answer.code == 3
    status = {
        path.parent.name.partition("-")[0]: summary(path.parent) for path in tmp_path.glob("sweep/*/summary.json")
    }
    assert {number: end["exit_code"] for number, end in status.items()} == {"0": 3, "1": 2, "2": 0, "3": 2}
    assert "1 of 4 runs finished" in answer.out
    listed = answer.err.partition("3 runs failed")[2]
    for number in "013":
        assert re.search(rf"^  .*\b{number}-gen_div-.*: .*(train\.batch_size|gen_objective)", listed, re.MULTILINE)
    assert gantrain("train", "-m", *TINY, "run_dir=sweep", "seed=0,1").code == 6


# ---------------------------------------------------------------------------------------------------------------------
# Bad data, bad luck


def test_bad_data_are_exit_code_3_with_path_and_reason(gantrain: Gantrain, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    pictures(tmp_path / "few", count=15)
    pictures(tmp_path / "broken")
    (tmp_path / "broken/a/0.png").write_bytes((tmp_path / "broken/a/0.png").read_bytes()[:60])
    for path, says in (("missing", "missing"), ("empty", "empty"), ("few", "train.batch_size=20"), ("broken", "0.png")):
        typed = ["dataset=folder", f"dataset.path={path}", "dataset.size=8", "architecture=conv8"]
        answer = gantrain("train", *TINY, *typed, f"run_dir=run_{path}")
        assert (answer.code, answer.out) == (3, "")
        assert says in answer.err
        if path == "missing":  # found before any data are read
            assert gantrain("train", "-m", "seed=0,1", *TINY, *typed, "run_dir=run_missing").code == 3
            assert not (tmp_path / "run_missing").exists()
            continue
        end = summary(tmp_path / f"run_{path}")
        assert (end["status"], end["exit_code"]) == ("failed", 3)
        assert f"gantrain: {end['reason']}\n" == answer.err
    answer = gantrain("train", *TINY, *typed, "dataset.on_bad=skip", "run_dir=skipping")
    assert answer.code == 0
    assert summary(tmp_path / "skipping")["data"]["skipped_files"] == 1


def test_data_that_cannot_be_looked_at_are_exit_code_3(gantrain: Gantrain, tmp_path: Path) -> None:
    """As below a folder without permission, which root may always look into."""
    answer = gantrain("train", "dataset=folder", f"dataset.path={'x' * 300}", "architecture=dcgan32", "run_dir=run")
    assert (answer.code, "x cannot be read (File name too long); give dataset.path" in answer.err) == (3, True)
    assert not any(tmp_path.iterdir())


def test_an_array_is_chosen_by_its_name(gantrain: Gantrain, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", others=images[:5], images=images)
    typed = [*TINY, "dataset=array", "dataset.size=8", "architecture=mlp_digits", "dataset.path=x.npz:images"]
    assert gantrain("train", *typed, "run_dir=run").code == 0
    data = summary(tmp_path / "run")["data"]
    assert data["training_images"] == 72
    answer = gantrain("train", *typed, "dataset.path=y.npz:images", "run_dir=none")
    assert (answer.code, (tmp_path / "none").exists()) == (3, False)


def test_an_evaluation_is_proposed_at_the_end_where_there_are_metrics(gantrain: Gantrain) -> None:
    np.save("points.npy", np.random.default_rng(0).normal(size=(300, 3)))
    points = gantrain("train", *TINY, "dataset=array", "dataset.path=points.npy", "architecture=mlp", "run_dir=points")
    assert "\nnext: gantrain sample points" in points.out
    assert gantrain("evaluate", "points").code == 2
    assert "\nnext: gantrain evaluate ring" in gantrain("train", *TINY, "dataset=ring", "run_dir=ring").out


def test_a_run_that_diverges_stops_before_the_update(gantrain: Gantrain, tmp_path: Path) -> None:
    answer = gantrain("train", *TINY, "optimizer=sgd", "optimizer.lr=1e30", "disc_div=kl", "gen_div=kl", "run_dir=run")
    assert answer.code == 5
    assert re.search(r"not finite at images = \d+; the \w+'s update was not made \(.*loss/\w+ = ", answer.err)
    assert "optimizer.lr" in answer.err
    end = summary(tmp_path / "run")
    assert (end["status"], end["exit_code"]) == ("failed", 5)
    for path in (tmp_path / "run").glob("checkpoints/*.pt"):
        state = torch.load(path, weights_only=True)["state"]["discriminator"]
        assert all(bool(value.isfinite().all()) for value in state.values())


def test_a_folder_that_cannot_be_made_is_exit_code_7(gantrain: Gantrain, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for typed in (["run_dir=file/run"], ["run_dir=file"], ["run_dir=file/run", "-m", "seed=0,1"]):
        answer = gantrain("train", *TINY, *typed)
        assert (answer.code, answer.out) == (7, "")
        assert "file" in answer.err
    (tmp_path / "runs").touch()
    assert gantrain("train", *TINY).code == 7


def test_a_busy_folder_is_refused(gantrain: Gantrain, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    holder = subprocess.Popen(["flock", "--no-fork", str(tmp_path / "run/.lock"), "sleep", str(PATIENCE_SECONDS)])
    try:
        attempt = ["flock", "-n", str(tmp_path / "run/.lock"), "true"]
        wait_until(lambda: subprocess.run(attempt, check=False).returncode != 0)
        answer = gantrain("train", *TINY, "run_dir=run")
    finally:
        holder.kill()
        holder.wait()
    assert (answer.code, answer.out) == (6, "")
    assert "in use" in answer.err


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def test_samples_are_numbered_pictures_that_the_seed_decides(
    gantrain: Gantrain, finished: Path, tmp_path: Path
) -> None:
    """From the run or one of its checkpoints, without the pictures it was trained on."""
    newest = finished / "checkpoints/images_000000000100.pt"
    for source, out in ((finished, "first"), (newest, "second")):
        answer = gantrain("sample", source, "count=5", "seed=3", f"out={out}")
        assert (answer.code, answer.err) == (0, "")
        assert "5 samples" in answer.out
    gantrain("sample", finished, "count=5", "seed=4", "out=other")
    names = {f"0000{number}.png" for number in range(5)}
    assert files(tmp_path / "first") == names | {"grid.png"}
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
        assert (tmp_path / "first" / name).read_bytes() != (tmp_path / "other" / name).read_bytes()
    drawn = package.load(finished).sample(5, seed=3)
    assert drawn.shape == (5, 3, 8, 8)
    for number, image in enumerate(drawn):
        found = np.asarray(Image.open(tmp_path / f"first/0000{number}.png"), dtype=float) / 255
        np.testing.assert_allclose(found.transpose(2, 0, 1), image.numpy(), atol=0.5 / 255 + 1e-6)
    older = package.load(finished / "checkpoints/images_000000000040.pt")
    assert older.images == 40
    assert not torch.equal(older.sample(5, seed=3), drawn)


def test_samples_are_never_mixed_with_older_ones(gantrain: Gantrain, finished: Path, tmp_path: Path) -> None:
    assert gantrain("sample", finished, "count=5", "out=out").code == 0
    before = files(tmp_path / "out")
    answer = gantrain("sample", finished, "count=3", "out=out")
    assert (answer.code, "00003.png to 00004.png" in answer.err) == (2, True)
    assert files(tmp_path / "out") == before
    assert gantrain("sample", finished, "count=6", "out=out").code == 0
    assert len(files(tmp_path / "out")) == 7  # the grid is one


def test_samples_go_beside_the_grids_by_default(gantrain: Gantrain, finished: Path, tmp_path: Path) -> None:
    """And the run, whose path may look like key=value, stands anywhere among the keys."""
    run = shutil.copytree(finished, tmp_path / "lr=0.1")
    assert gantrain("sample", "count=2", "lr=0.1", "seed=8").code == 0
    assert files(run / "samples/seed8") == {"00000.png", "00001.png", "grid.png"}
    assert gantrain("sample", run / "checkpoints/last.pt", "count=1", "seed=9").code == 0
    assert files(run / "samples/seed9") == {"00000.png", "grid.png"}


def test_one_array_of_samples_for_evaluators(gantrain: Gantrain, finished: Path, tmp_path: Path) -> None:
    """The file is whole or absent, and an older one stays."""
    answer = gantrain("sample", finished, "out=new/X.npy")
    assert (answer.code, "out=new/X.npz" in answer.err) == (2, True)
    wanted = ["sample", finished, "count=5", "seed=3", "out=new/X.npz"]
    answer = gantrain(*wanted)
    assert (answer.code, answer.err, "in new/X.npz" in answer.out) == (0, "", True)
    with np.load(tmp_path / "new/X.npz") as file:
        assert file.files == ["arr_0"]
        array = file["arr_0"]
    assert (array.shape, array.dtype, array.flags.c_contiguous) == ((5, 8, 8, 3), np.uint8, True)
    drawn = package.load(finished).sample(5, seed=3).numpy()
    np.testing.assert_array_equal(array, np.rint(drawn.transpose(0, 2, 3, 1) * 255))

    before = (tmp_path / "new/X.npz").read_bytes()
    answer = gantrain(*wanted)
    assert (answer.code, "out=new/X.npz exists" in answer.err) == (2, True)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1000, 1000))  # the message has 300 bytes
    code, output = processes.run(tmp_path / "log", "sample", finished, "count=5", "out=new/Y.npz", fault=limit)
    assert (code, "out=new/Y.npz" in output) == (7, True), output
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == {"X.npz": before}


@pytest.mark.parametrize("typed", ["count=0", "count=1,2", "count=null", "cuont=3", "seed=-1", "device=nowhere", "-x"])
def test_bad_options_of_sample_are_refused(gantrain: Gantrain, finished: Path, tmp_path: Path, typed: str) -> None:
    answer = gantrain("sample", finished, typed, *(["out=out"] if typed != "-x" else []))
    assert (answer.code, answer.out) == (2, "")
    assert typed.partition("=")[0] in answer.err
    assert not (tmp_path / "out").exists()


def test_samples_that_cannot_be_written_are_exit_code_7(gantrain: Gantrain, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = gantrain("sample", finished, "count=1", "out=file")
    assert (answer.code, answer.out) == (7, "")
    assert "file" in answer.err


# ---------------------------------------------------------------------------------------------------------------------
# Trust


def test_control_characters_never_reach_the_terminal(gantrain: Gantrain, tmp_path: Path, finished: Path) -> None:
    images = pictures(tmp_path / f"im{ESCAPE}ages")
    (images / f"bad{ESCAPE}[bold].png").write_bytes(b"no picture")
    folder = ["dataset=folder", f"dataset.path='{images}'", "dataset.size=8", "architecture=conv8"]
    copied = shutil.copytree(finished, tmp_path / f"co{ESCAPE}py")
    broken = shutil.copytree(finished, tmp_path / f"bro{ESCAPE}ken")
    (broken / "checkpoints/images_000000000100.pt").write_bytes(b"")
    short, raw = [*SHORT, "train.images=20"], []
    for arguments in (
        [f"tr{ESCAPE}ain"],
        ["train", f"se{ESCAPE}ed=1"],
        ["train", f"gen_div='{ESCAPE}kl'"],
        ["train", *TINY, *folder],
        ["train", *short, f"dataset.label='[red]{ESCAPE}x'", f"run_dir='a{ESCAPE}c'", "-m", "seed=range(0,1)"],
        ["train", *short, f"run_dir='a{ESCAPE}[red]b'"],
        ["train", f"dataset.label='{ESCAPE}x'", "--cfg", "job"],
        ["resume", copied],
        ["resume", broken, "dataset.path=/missing"],
        ["sample", copied, "count=1"],
        ["sample", finished, "count=1", f"out='o{ESCAPE}ut'"],
        ["architecture", f"mlp{ESCAPE}"],
    ):
        answer = gantrain(*arguments)
        assert answer.code in (0, 2, 3), answer
        raw += [arguments] if ESCAPE[0] in answer.out + answer.err else []
    assert raw == []


def test_secrets_of_the_environment_are_in_no_file(
    gantrain: Gantrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GANTRAIN_PLACE", str(pictures(tmp_path / "hush-hush")))
    folder = ["dataset=folder", "dataset.size=8", "architecture=conv8"]
    place = [f"dataset.{key}='${{oc.env:GANTRAIN_PLACE}}'" for key in ("root", "path", "label")]
    typed = [*SHORT, "train.images=20", *folder, *place]
    assert gantrain("train", *typed, "run_dir=run").code == 0
    assert gantrain("train", "-m", *typed, "run_dir=sweep", "seed=range(0,1)").code == 0
    assert gantrain("resume", "run", "train.images=40").code == 0
    shutil.rmtree(tmp_path / "hush-hush")
    assert gantrain("sample", "run", "count=1").code == 0
    assert gantrain("train", *typed, "run_dir=failed").code == 3
    for name in files(tmp_path):
        assert b"hush-hush" not in (tmp_path / name).read_bytes(), name
    assert (tmp_path / "run/train.log").read_text().startswith("run: ${oc.env:GANTRAIN_PLACE}, 54 training images")


OWN_NETWORKS = """
from pathlib import Path
from torch import nn
Path({marker!r}).touch()
def networks(data_shape, latent_size):
    return nn.Linear(latent_size, 2), nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
"""


def test_code_counts_only_when_it_is_typed(gantrain: Gantrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "imported"
    write(tmp_path / "code/own_networks.py", OWN_NETWORKS.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path / "code")
    own = tmp_path / "yaml"
    write(own / "experiment/mine.yaml", "# @package _global_\narchitecture: {object: 'own_networks:networks'}\n")
    typed, code = ["train", *TINY, "dataset=ring"], "architecture.object=own_networks:networks"
    for flags in ([], ["-m", "seed=0,1"]):
        answer = gantrain(*typed, "experiment=mine", "--config-dir", own, *flags)
        assert answer.code == 2
        assert "own_networks:networks" in answer.err
        assert not marker.exists()
    assert gantrain(*typed, code, "run_dir=run").code == 0
    assert marker.exists()

    monkeypatch.delitem(sys.modules, "own_networks")
    marker.unlink()
    for arguments in ("sample run", "evaluate run metrics=modes", "resume run train.images=120"):
        answer = gantrain(*arguments.split())
        assert answer.code == 2
        assert f"\n  gantrain {arguments} {code}\n" in answer.err  # what to type
        assert not marker.exists()
    answer = gantrain("sample", "run", "object=own_networks:networks")
    assert (answer.code, "did you mean architecture.object?" in answer.err) == (2, True)
    assert gantrain("sample", "run", "count=3", code).code == 0
    assert gantrain("evaluate", "run", "count=100", "metrics=modes", code).code == 0
    assert gantrain("resume", "run", "train.images=120", code).code == 0
    assert summary(tmp_path / "run")["images"] == 120


def test_code_that_is_not_there_is_named(gantrain: Gantrain, tmp_path: Path) -> None:
    path = sys.path[:]
    (tmp_path / "some_networks.py").write_text("")
    for code, reason in (
        ("no_such_networks:pair", "there is no module no_such_networks, neither in the current folder"),
        ("some_networks:pair", "module 'some_networks' has no attribute 'pair'"),
        ("some_networks", "is not of the form package:function"),
    ):
        answer = gantrain("train", *TINY, "dataset=ring", f"architecture.object={code}", "run_dir=run")
        assert (answer.code, reason in answer.err) == (2, True), answer.err
    assert not (tmp_path / "run").exists()
    assert sys.path == path


def test_python_m_and_the_script_are_one_program() -> None:
    module, script = process("--version"), Path(sys.executable).parent / "gantrain"
    assert module.returncode == 0
    assert subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout == module.stdout


@pytest.mark.parametrize(("architecture", "threads"), [("mlp_digits", 1), ("dcgan28", 2)])
def test_small_networks_are_not_shared_between_threads(
    gantrain: Gantrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        size = [] if architecture == "mlp_digits" else ["dataset.size=28"]
        run = tmp_path / "run"
        answer = gantrain("train", *SHORT, "train.images=20", f"architecture={architecture}", *size, f"run_dir={run}")
        assert answer.code == 0, answer.err
        assert summary(run)["threads"] == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
