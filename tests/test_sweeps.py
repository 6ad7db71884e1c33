"""A sweep that was ended early goes on where it stopped, and comes to the same."""

import csv
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.waiting import wait_until

from gantrain.comparison.comparison import compare
from gantrain.comparison.runs import command_lines
from gantrain.launch.sweep_folder import COMMAND, read_safe_command
from gantrain.runs.folder import RunFolder

SMALL = [
    *(
        "gen_div=kl,js,gan",
        "device=cpu",
        "train.batch_size=20",
        "train.images=2000",
        "train.held_out_images=20",
    ),
    *("train.report_every_images=500", "train.checkpoint_every_images=400", "train.checkpoint_min_seconds=0"),
]
TIMES = ("seconds", "images_per_second", "speed", "system", "folder", "started", "finished", "date", "path", "resumed")


def process(*arguments: object) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    program = "import sys; from gantrain.cli import main; sys.exit(main())"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], env=environment, stdout=output)


def table(root: Path) -> list[dict[str, str]]:
    """compare.csv without what the clock on the wall decides."""
    with (root / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "run" and not any(time in name for time in TIMES)]
    return [{name: row[name] for name in names} for row in rows]


def contents(root: Path) -> dict[str, str]:
    """A digest of every file of every run but its lock, and Hydra's log, which says when it was looked at."""
    files = [path for path in root.glob("*/**/*") if path.is_file() and path.name not in (".lock", "train.log")]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole") / "sweep"
    assert process("train", "-m", *SMALL, f"run_dir={root}").wait() == 0
    return root


def test_a_sweep_that_was_killed_and_goes_on_gives_the_same_report(whole: Path, tmp_path: Path) -> None:
    """Killed in the middle of its first run; then again, while it goes on, at the beginning of the third."""
    root = tmp_path / "sweep"
    begin = ["train", "-m", *SMALL, f"run_dir={root}"]
    for command, moment in ((begin, "0-*/checkpoints/images_000000000800.pt"), (["resume", root], "2-*/.hydra")):
        running = process(*command)
        wait_until(lambda moment=moment, running=running: running.poll() is not None or list(root.glob(moment)))
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
    assert process("resume", root).wait() == 0
    assert table(root) == table(whole)
    for folder in whole.glob("*-gen_div*"):
        theirs, ours = RunFolder(folder), RunFolder(root / folder.name)
        assert ours.read_summary()["status"] == "finished"
        assert {path.name for path in ours.config.parent.iterdir()} == {
            path.name for path in theirs.config.parent.iterdir()
        }
        assert (
            yaml.safe_load((folder / ".hydra/overrides.yaml").read_text())[:2]
            == yaml.safe_load(ours.config.with_name("overrides.yaml").read_text())[:2]
        )


def test_what_is_finished_stays_as_it_is(gantrain, whole: Path, tmp_path: Path) -> None:
    before = contents(whole)
    answer = gantrain("resume", whole)
    assert (answer.code, answer.err) == (0, "")
    assert "3 of 3 runs finished" in answer.out
    assert contents(whole) == before


def test_a_stopped_sweep_says_how_to_go_on(tmp_path: Path) -> None:
    root = tmp_path / "sweep"
    program = "import sys; from gantrain.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "train", "-m", *SMALL, f"run_dir={root}"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: running.poll() is not None or list(root.glob("1-*/checkpoints/*.pt")))
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate()
    assert running.returncode == 143
    assert f"1 runs of the sweep in {root} finished; go on with: gantrain resume {root}" in said


def test_the_sweeps_command_given_again_with_resume_auto_goes_on(gantrain, tmp_path: Path) -> None:
    begin = ["train", "-m", "gen_div=kl,js", "train.images=100", "train.batch_size=20", "train.held_out_images=20"]
    assert gantrain(*begin, "run_dir=s", "resume=auto").code == 0
    assert gantrain(*begin, "run_dir=s").code == 6
    for folder in tmp_path.glob("s/1-*"):
        folder.rename(tmp_path / "away")
    answer = gantrain(*begin, "run_dir=s", "resume=auto", "train.report_every_images=50")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.count("training images") == 1
    assert {path.name for path in tmp_path.glob("s/*-*") if path.is_dir()} == {"0-gen_div-kl", "1-gen_div-js"}
    for other in (["gen_div=kl,gan"], ["gen_div=kl,js", "optimizer.lr=1"]):
        answer = gantrain("train", "-m", *other, *begin[3:], "run_dir=s", "resume=auto")
        assert answer.code == 4
        assert "another sweep" in answer.err


TINY = ["train.images=40", "train.batch_size=20", "train.held_out_images=20"]


def test_runs_keep_their_numbers(gantrain, tmp_path: Path) -> None:
    """Jobs are numbered in the order of what was typed: in another one a run would begin anew, under a new name."""
    assert gantrain("train", "-m", "seed=0,1", "gen_div=kl,js", *TINY, "run_dir=s").code == 0
    before = contents(tmp_path / "s")
    answer = gantrain("train", "-m", "gen_div=kl,js", "seed=0,1", *TINY, "run_dir=s", "resume=auto")
    assert (answer.code, "in the order of seed=0,1 gen_div=kl,js" in answer.err) == (4, True)
    assert gantrain("train", "-m", "train.images=40,60", *TINY[1:], "run_dir=t").code == 0
    assert gantrain("resume", "t", "train.images=80").code == 4
    assert contents(tmp_path / "s") == before


def test_what_only_the_command_line_may_set_goes_on_where_it_is_typed_again(gantrain, tmp_path: Path) -> None:
    begin = ["train", "-m", "seed=0,1", "hydra.job.name=mine", *TINY, "run_dir=s"]
    assert gantrain(*begin).code == 0
    answer = gantrain("resume", "s")
    assert (answer.code, "hydra.job.name=mine, which is not taken from a file" in answer.err) == (4, True)
    assert gantrain(*begin, "resume=auto").code == 0


def test_the_command_outlives_a_write_that_failed(gantrain, tmp_path: Path) -> None:
    """Hydra empties its file before it writes it; from the second start on there is a copy."""
    assert gantrain("train", "-m", "seed=0,1", *TINY, "run_dir=s").code == 0
    assert gantrain("resume", "s").code == 0
    (tmp_path / "s" / COMMAND).write_text("")
    assert gantrain("resume", "s", "train.images=60").code == 0
    assert read_safe_command(tmp_path / "s").task[:1] == ["seed=0,1"]


def test_a_sweeps_folder_takes_no_single_run(gantrain, tmp_path: Path) -> None:
    assert gantrain("train", "-m", "seed=0,1", *TINY, "run_dir=s").code == 0
    before = sorted(tmp_path.rglob("*"))
    for resume in ([], ["resume=auto"]):
        answer = gantrain("train", "seed=0", *TINY, "run_dir=s", *resume)
        assert (answer.code, "s holds a sweep; go on with `gantrain resume s`" in answer.err) == (6, True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sweep_that_went_on_is_told_as_the_one_command_that_it_was(gantrain, tmp_path: Path) -> None:
    assert gantrain("train", "-m", "gen_div=kl,js", "seed=0,1", *TINY, "run_dir=s").code == 0
    for missing in ("2-gen_div-js_seed-0", "3-gen_div-js_seed-1"):
        shutil.rmtree(tmp_path / "s" / missing)
    assert gantrain("resume", "s").code == 0
    (line,) = command_lines(compare([tmp_path / "s"]).runs)
    assert line == ["-m", "gen_div=kl,js", "seed=0,1", *TINY]


def test_a_runs_folder_takes_no_sweep(gantrain, tmp_path: Path) -> None:
    assert gantrain("train", *TINY, "run_dir=r").code == 0
    before = sorted(path.name for path in (tmp_path / "r").iterdir())
    answer = gantrain("train", "-m", *TINY, "seed=0,1", "run_dir=r")
    assert (answer.code, "gantrain resume r" in answer.err) == (6, True)
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == before


def test_a_sweep_writes_through_no_link(gantrain, tmp_path: Path) -> None:
    assert gantrain("train", "-m", "seed=0,1", *TINY, "run_dir=s").code == 0
    (tmp_path / "victim").write_text("as it was")
    config = tmp_path / "s/1-seed-1/.hydra/config.yaml"
    config.unlink()
    config.symlink_to(tmp_path / "victim")
    answer = gantrain("resume", "s")
    assert (answer.code, f"{config.name} is a link" in answer.err) == (4, True)
    config.parent.parent.rename(tmp_path / "elsewhere")
    (tmp_path / "s/1-seed-1").symlink_to(tmp_path / "elsewhere")
    assert "1-seed-1 is a link" in gantrain("resume", "s").err
    assert (tmp_path / "victim").read_text() == "as it was"


@pytest.mark.parametrize("launcher", ["basic", "parallel"])
def test_a_damaged_summary_ends_that_run_alone(gantrain, tmp_path: Path, launcher: str) -> None:
    assert gantrain("train", "-m", "seed=0,1,2", *TINY, f"hydra/launcher={launcher}", "run_dir=s").code == 0
    (tmp_path / "s/1-seed-1/summary.json").write_text("{")
    (tmp_path / "s/2-seed-2").rename(tmp_path / "away")
    answer = gantrain("resume", "s")
    assert answer.code == 4
    assert "2 of 3 runs finished" in answer.out
    assert re.search(r"1 run failed:\n  1-seed-1: .*summary.json cannot be read", answer.err)
    assert RunFolder(tmp_path / "s/2-seed-2").read_summary()["status"] == "finished"


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (["gen_div=kl,js", "evaluate.every_images=20", "best.metric=quality/foo"], "best.metric=quality/foo"),
        (["gen_div=kl,js", "device=gpu"], "device=gpu"),
        (["gen_div=1,2"], "gen_div=1 is not one of the choices"),
        (["gen_div=range(1,3)"], "gen_div=1 is not one of the choices"),
        (["gen_div=glob(zz*)"], "gen_div=glob(zz*) matches none of: kl, "),
        (["gen_div=glob([jk]*)"], "gen_div=glob('[jk]*')"),
        (["ema=interval(0,1)"], "has no end; list values"),
        (["seed=range(0,1000000000)"], "lists more than 100,000 values"),
        (["gen_div=total_variation", "seed=0,1"], "gen_objective=matched"),
    ],
)
def test_a_sweep_of_which_no_run_could_train_is_refused_before_it_begins(
    gantrain, tmp_path: Path, listed: list[str], words: str
) -> None:
    answer = gantrain("train", "-m", *TINY, *listed, "run_dir=s")
    assert (answer.code, answer.out) == (2, "")
    assert words in answer.err
    assert not (tmp_path / "s").exists()


def test_a_reason_that_runs_share_is_told_once(gantrain) -> None:
    answer = gantrain("train", "-m", *TINY, "gen_div=total_variation,kl", "seed=0,1", "run_dir=s")
    assert answer.code == 2
    told = answer.err.partition("2 runs failed:\n")[2]
    assert re.match(r"  0-\S+seed-0, 1-\S+seed-1: gen_objective=matched", told)
    assert told.count("gen_objective=matched") == 1


def test_a_sweep_may_go_on_for_longer_but_not_as_another_one(gantrain, tmp_path: Path) -> None:
    assert gantrain("train", "-m", "gen_div=kl,js", "train.images=100", *TINY[1:], "run_dir=s").code == 0
    answer = gantrain("resume", "s", "seed=3")
    assert (answer.code, "seed=3" in answer.err) == (4, True)
    assert gantrain("resume", "s", "train.images=160").code == 0
    assert [RunFolder(run).read_summary()["images"] for run in sorted(tmp_path.glob("s/*-*/"))] == [160, 160]


def test_an_experiments_own_sweep_is_shown_and_takes_other_values(gantrain, tmp_path: Path) -> None:
    shown = gantrain("train", "experiment=paper_figure2", "gen_objective=matched", "--cfg", "job")
    assert (shown.code, yaml.safe_load(shown.out)["gen_objective"]) == (0, "matched")
    assert not any(tmp_path.iterdir())
    fast = ["dataset=digits", "architecture=mlp_digits", "train.images=20", "train.batch_size=20", "seed=0"]
    fast += ["evaluate.every_images=null", "gen_objective=ratio"]
    assert gantrain("train", "experiment=paper_figure2", "gen_div=kl,js", *fast, "run_dir=s").code == 0
    assert {path.name for path in tmp_path.glob("s/*/") if path.name[0].isdigit()} == {"0-gen_div-kl", "1-gen_div-js"}
    assert gantrain("train", "experiment=paper_figure2", "gen_div=kl", *fast, "run_dir=one").code == 0
    assert RunFolder(tmp_path / "one/0").read_summary()["status"] == "finished"


def test_an_experiments_own_sweep_goes_on(gantrain, tmp_path: Path) -> None:
    fast = ["dataset=digits", "architecture=mlp_digits", "train.images=20", "train.batch_size=20", "seed=0"]
    fast += ["evaluate.every_images=null"]  # no classifier
    assert gantrain("train", "experiment=paper_figure2", "gen_objective=matched", *fast, "run_dir=s").code == 0
    names = {path.name.partition("-gen_div-")[2] for path in tmp_path.glob("s/*-*/")}
    assert names == {"softened_reverse_kl", "reverse_kl", "alpha_0.25", "alpha_0.5", "alpha_0.75", "js", "kl"}
    before = contents(tmp_path / "s")
    assert gantrain("resume", "s").code == 0
    assert contents(tmp_path / "s") == before


def told(task: list[str], hydra: list[str]) -> dict[str, dict[str, dict[str, list[str]]]]:
    """What Hydra keeps of a command."""
    return {"hydra": {"overrides": {"task": task, "hydra": hydra}}}


HOSTILE = {
    "another kind of file": "- 1",
    "no text": "\0\xff",
    "a bomb": "a: &a [1,1,1,1,1,1,1,1]\n"
    + "".join(f"{n}: &{n} [{', '.join([f'*{m}'] * 9)}]\n" for m, n in zip("abcdefg", "bcdefgh", strict=True)),
    "an object of Python": "hydra: !!python/object/apply:os.system ['touch touched']",
}
# Overrides of Hydra's own that nobody may send.
NOT_FROM_A_FILE = {
    "a class": "hydra.launcher._target_=os.system",
    "a callback": "+hydra.callbacks.x._target_=os.system",
    "a command for a shell": "hydra.launcher.setup=[touch touched]",
    "a folder elsewhere": "hydra.sweep.subdir=../away",
    "a folder from the environment": "hydra.sweep.subdir=${oc.env:HOME}",
    "a key of Hydra's in every job": "hydra.sweeper.params={hydra.job.env_set.A: b}",
    "a number in place of folders": "hydra.searchpath=5",
}
HOSTILE |= {name: yaml.safe_dump(told(["seed=0,1"], [text])) for name, text in NOT_FROM_A_FILE.items()}
HOSTILE |= {f"{name} as ours": yaml.safe_dump(told([text], [])) for name, text in NOT_FROM_A_FILE.items()}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_command_in_a_folder_is_not_trusted(gantrain, tmp_path: Path, name: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / COMMAND).write_text(HOSTILE[name], encoding="latin-1")
    answer = gantrain("resume", "s")
    assert answer.code == 4
    assert "Traceback" not in answer.err
    assert COMMAND in answer.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == [COMMAND, "s"]


def test_code_of_ones_own_has_to_be_typed_again(gantrain, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    task = ["seed=0,1", "++architecture.object=os:remove"]
    (tmp_path / "s" / COMMAND).write_text(yaml.safe_dump(told(task, [])))
    answer = gantrain("resume", "s")
    assert (answer.code, "typed again" in answer.err) == (2, True)


def test_the_command_of_a_sweep_is_read_back(gantrain, tmp_path: Path) -> None:
    (tmp_path / "own/optimizer").mkdir(parents=True)
    (tmp_path / "own/optimizer/mine.yaml").write_text("name: Adam\nlr: 0.001\n")
    typed = ["optimizer=mine", "train.images=40", "train.batch_size=20", "train.held_out_images=20", "seed=0,1"]
    assert gantrain("train", "-m", "--config-dir", "own", *typed, "run_dir=s").code == 0
    command = read_safe_command(tmp_path / "s")
    assert command.task == [*typed, "run_dir=s"]
    assert (command.hydra, command.config_dir) == ([], str(tmp_path / "own"))
    assert gantrain("resume", "s", "train.images=60").code == 0
