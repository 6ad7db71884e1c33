"""Sweeps: what is refused before they begin, and how they go on in their folder."""

import hashlib
import re
import shutil
from pathlib import Path

import pytest
import yaml

from gantrain.cli import main
from gantrain.comparison.comparison import compare
from gantrain.comparison.runs import command_lines
from gantrain.config.compose import Composer
from gantrain.launch.sweep_folder import COMMAND, read_safe_command
from gantrain.runs.folder import RunFolder

TINY = ["train.images=40", "train.batch_size=20", "train.held_out_images=20"]
pytestmark = pytest.mark.usefixtures("plain_figures")


def contents(root: Path) -> dict[str, str]:
    """Return a digest of every file of every run, except its lock and Hydra's log, which a resume may write."""
    files = [path for path in root.glob("*/**/*") if path.is_file() and path.name not in (".lock", "train.log")]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(autouse=True)
def _without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of `gantrain compare` cover the report that a sweep ends with; it takes longer than such runs."""
    monkeypatch.setattr("gantrain.launch.sweep_folder.compare_sweep", lambda root: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of four runs; not to be written into."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("sys.argv", ["gantrain"])
        patch.setattr("gantrain.launch.sweep_folder.compare_sweep", lambda root: None)
        assert main(["train", "-m", "gen_div=kl,js", "seed=0,1", *TINY, "run_dir=s"]) == 0
    return place / "s"


@pytest.fixture
def swept(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, in the folder where the command line is called."""
    return shutil.copytree(finished, tmp_path / "s")


def test_what_is_finished_stays_as_it_is(gantrain, swept: Path) -> None:
    before = contents(swept)
    answer = gantrain("resume", "s")
    assert (answer.code, answer.err) == (0, "")
    assert "4 of 4 runs finished" in answer.out
    assert contents(swept) == before


def test_missing_runs_are_trained_and_the_command_stays_one(gantrain, swept: Path) -> None:
    """Also after Hydra failed to write its file: from the second start on there is a copy."""
    names = {path.name for path in swept.glob("*-*")}
    for number in (2, 3):
        shutil.rmtree(next(swept.glob(f"{number}-*")))
        answer = gantrain("resume", "s")
        assert (answer.code, answer.out.count("training images")) == (0, 1)
        (swept / COMMAND).write_text("")
    assert {path.name for path in swept.glob("*-*")} == names
    (line,) = command_lines(compare([swept]).runs)
    assert line == ["-m", "gen_div=kl,js", "seed=0,1", *TINY]


def test_the_sweeps_command_given_again_goes_on_with_resume_auto(gantrain, swept: Path) -> None:
    before = contents(swept)
    assert gantrain("train", "-m", "gen_div=kl,js", "seed=0,1", *TINY, "run_dir=s").code == 6
    again = ["train", "-m", "run_dir=s", "resume=auto", *TINY]
    for other, words in (
        (["gen_div=kl,gan", "seed=0,1"], "another sweep"),
        (["gen_div=kl,js", "seed=0,1", "optimizer.lr=1"], "another sweep"),
        (["seed=0,1", "gen_div=kl,js"], "in the order of gen_div=kl,js seed=0,1"),
    ):
        answer = gantrain(*again, *other)
        assert (answer.code, words in answer.err) == (4, True)
    assert contents(swept) == before
    missing = swept / "3-gen_div-js_seed-1"
    shutil.rmtree(missing)
    assert gantrain(*again, "gen_div=kl,js", "seed=0,1", "train.report_every_images=20").code == 0
    assert RunFolder(missing).read_summary()["status"] == "finished"


def test_a_sweep_may_go_on_for_longer_but_not_as_another_one(gantrain, swept: Path) -> None:
    answer = gantrain("resume", "s", "seed=3")
    assert (answer.code, "seed=3" in answer.err) == (4, True)
    assert gantrain("resume", "s", "train.images=60").code == 0
    shutil.rmtree(next(swept.glob("3-*")))  # of a sweep that was stopped before
    answer = gantrain("resume", "s")  # as its message says: the sweep goes on with what was typed last
    assert (answer.code, answer.err) == (0, "")
    assert {RunFolder(run).read_summary()["images"] for run in swept.glob("*-*/")} == {60}


def test_values_that_name_the_runs_cannot_change(gantrain) -> None:
    assert gantrain("train", "-m", "train.images=40,60", *TINY[1:], "run_dir=t").code == 0
    assert gantrain("resume", "t", "train.images=80").code == 4


def test_values_in_a_file_that_name_the_runs_cannot_change(gantrain, tmp_path: Path) -> None:
    file = tmp_path / "own" / "experiment" / "lengths.yaml"
    file.parent.mkdir(parents=True)
    listed = {"mode": "MULTIRUN", "sweeper": {"params": {"train.images": "40,60"}}}
    file.write_text(f"# @package _global_\n{yaml.safe_dump({'hydra': listed})}")
    assert gantrain("train", "experiment=lengths", "--config-dir", "own", *TINY[1:], "run_dir=t").code == 0
    before = contents(tmp_path / "t")
    answer = gantrain("resume", "t", "train.images=80")
    assert (answer.code, "train.images=80 replaces" in answer.err) == (4, True)
    assert contents(tmp_path / "t") == before
    assert gantrain("resume", "t", "train.report_every_images=20").code == 0


def test_what_only_the_command_line_may_set_goes_on_where_it_is_typed_again(gantrain) -> None:
    begin = ["train", "-m", "seed=0,1", "hydra.job.name=mine", *TINY, "run_dir=s"]
    assert gantrain(*begin).code == 0
    answer = gantrain("resume", "s")
    assert (answer.code, "hydra.job.name=mine, which is not taken from a file" in answer.err) == (4, True)
    assert gantrain(*begin, "resume=auto").code == 0


def test_a_folder_holds_a_run_or_a_sweep(gantrain, swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept / "0-gen_div-kl_seed-0", tmp_path / "r")
    before = sorted(tmp_path.rglob("*"))
    for resume in ([], ["resume=auto"]):
        answer = gantrain("train", "seed=0", *TINY, "run_dir=s", *resume)
        assert (answer.code, "s holds a sweep; go on with `gantrain resume s`" in answer.err) == (6, True)
    answer = gantrain("train", "-m", *TINY, "seed=0,1", "run_dir=r")
    assert (answer.code, "gantrain resume r" in answer.err) == (6, True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sweep_writes_through_no_link(gantrain, swept: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("as it was")
    config = swept / "1-gen_div-kl_seed-1/.hydra/config.yaml"
    config.unlink()
    config.symlink_to(tmp_path / "victim")
    answer = gantrain("resume", "s")
    assert (answer.code, f"{config.name} is a link" in answer.err) == (4, True)
    run = config.parent.parent.rename(tmp_path / "elsewhere")
    (swept / "1-gen_div-kl_seed-1").symlink_to(run)
    assert "1-gen_div-kl_seed-1 is a link" in gantrain("resume", "s").err
    assert (tmp_path / "victim").read_text() == "as it was"


def test_a_damaged_summary_is_made_anew(gantrain, swept: Path) -> None:
    (swept / "1-gen_div-kl_seed-1/summary.json").write_text("{")
    shutil.rmtree(swept / "2-gen_div-js_seed-0")
    answer = gantrain("resume", "s")
    assert answer.code == 0
    assert "4 of 4 runs finished" in answer.out
    assert re.search(r"1-gen_div-kl_seed-1/summary.json is damaged; it is made anew", answer.out)


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (["gen_div=kl,js", "evaluate.every_images=20", "best.metric=quality/foo"], "best.metric=quality/foo"),
        (["gen_div=kl,js", "device=gpu"], "device=gpu"),
        (["gen_div=1,2"], "gen_div=1 is not one of the choices"),
        (["gen_div=range(1,3)"], "gen_div=1 is not one of the choices"),
        (["gen_div=glob(zz*)"], "gen_div=glob(zz*) matches none of: kl, "),
        (["gen_div=glob([jk]*)"], "as in 'gen_div=glob(\"[jk]*\")'"),
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


@pytest.mark.parametrize("seeds", ["range(100)", "range(0,100)", ",".join(map(str, range(100)))])
def test_seeds_do_not_multiply_the_time_until_a_sweep_is_refused(
    gantrain, monkeypatch: pytest.MonkeyPatch, seeds: str
) -> None:
    composed, compose = [], Composer.compose
    monkeypatch.setattr(Composer, "compose", lambda self, each: composed.append(each) or compose(self, each))
    answer = gantrain("train", "-m", "gen_div=total_variation", f"seed={seeds}", *TINY, "run_dir=s")
    assert (answer.code, "gen_objective=matched" in answer.err) == (2, True)
    assert len(composed) <= 4


@pytest.mark.parametrize("seeds", ["0,-1", "0,x", "0,1.5"])
def test_every_listed_seed_is_checked_before_the_first_run(gantrain, tmp_path: Path, seeds: str) -> None:
    answer = gantrain("train", "-m", f"seed={seeds}", *TINY, "run_dir=s")
    assert (answer.code, answer.out) == (2, "")
    assert f"seed={seeds[2:]}" in answer.err
    assert not (tmp_path / "s").exists()


def test_listed_values_of_the_only_regularizer_are_checked(gantrain) -> None:
    answer = gantrain("train", "-m", "regularizer=r1", "regularizer.weight=-1,-10", *TINY, "run_dir=s")
    assert answer.code == 2
    assert "regularizer.r1.weight=-1 must be at least 0" in answer.err


def test_a_reason_that_runs_share_is_told_once(gantrain) -> None:
    answer = gantrain("train", "-m", *TINY, "gen_div=total_variation,kl", "seed=0,1", "run_dir=s")
    assert answer.code == 2
    told = answer.err.partition("2 runs failed:\n")[2]
    assert re.match(r"  0-\S+seed-0, 1-\S+seed-1: gen_objective=matched", told)
    assert told.count("gen_objective=matched") == 1


def test_an_experiments_own_sweep_is_shown_takes_other_values_and_goes_on(gantrain, tmp_path: Path) -> None:
    shown = gantrain("train", "experiment=paper_figure2", "gen_objective=matched", "--cfg", "job")
    assert (shown.code, yaml.safe_load(shown.out)["gen_objective"]) == (0, "matched")
    assert not any(tmp_path.iterdir())
    fast = ["dataset=digits", "architecture=mlp_digits", "train.images=20", "train.batch_size=20", "seed=0"]
    fast += ["evaluate.every_images=null", "experiment=paper_figure2"]  # no classifier
    assert gantrain("train", "gen_div=kl", "gen_objective=ratio", *fast, "run_dir=one").code == 0
    assert RunFolder(tmp_path / "one/0").read_summary()["status"] == "finished"
    assert gantrain("train", "gen_objective=matched", *fast, "run_dir=s").code == 0
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
    "an empty number": "hydra: !!int ''",
    "a number that is none": "hydra: !!int x",
    "a date that is none": "hydra: 2001-02-30",
    "a number to the base 60": f"hydra: 1{':00' * 400}.5",
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
    assert (answer.code, "gantrain resume s architecture.object=os:remove\n" in answer.err) == (2, True)


def test_the_command_of_a_sweep_is_read_back(gantrain, tmp_path: Path) -> None:
    (tmp_path / "own/optimizer").mkdir(parents=True)
    (tmp_path / "own/optimizer/mine.yaml").write_text("name: Adam\nlr: 0.001\n")
    typed = ["optimizer=mine", *TINY, "seed=0,1"]
    assert gantrain("train", "-m", "--config-dir", "own", *typed, "run_dir=s").code == 0
    command = read_safe_command(tmp_path / "s")
    assert command.task == [*typed, "run_dir=s"]
    assert (command.hydra, command.params, command.config_dir) == ([], [], str(tmp_path / "own"))
    assert gantrain("resume", "s", "train.images=60").code == 0
