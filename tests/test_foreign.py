"""A folder of YAML that somebody sent composes values, and makes nothing run."""

import itertools

import pytest

from gantrain.config.compose import create_composer
from gantrain.config.trust import MOST_VALUES, count_values

GLOBAL = "# @package _global_\n"
HARMLESS = {
    "dataset": GLOBAL + "defaults:\n  - override /dataset: ring\n",
    "folders": GLOBAL + "run_dir: there\nhydra:\n  sweep: {subdir: x}\n",
    "sweep": GLOBAL + "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {gen_div: 'kl,js'}\n",
    "launcher": GLOBAL + "defaults:\n  - override /hydra/launcher: basic\n",
    "launcher and a number for it": GLOBAL
    + "defaults:\n  - override /hydra/launcher: submitit_slurm\nhydra: {launcher: {timeout_min: 5, partition: gpu}}\n",
}
# What each would run: MARK is a folder that must not appear.
ACTIVE = {
    "callback": {"experiment/x.yaml": GLOBAL + "hydra:\n  callbacks:\n    x: {_target_: os.makedirs, name: MARK}\n"},
    "callback without package": {
        "experiment/x.yaml": "# @package hydra.callbacks\nx: {_target_: os.makedirs, name: MARK}\n"
    },
    "launcher": {"experiment/x.yaml": GLOBAL + "hydra:\n  launcher: {_target_: os.makedirs, name: MARK}\n"},
    "nested in the launcher": {
        "experiment/x.yaml": GLOBAL + "hydra:\n  launcher:\n    a: {_target_: os.makedirs, name: MARK}\n"
    },
    "logging factory": {
        "experiment/x.yaml": GLOBAL + "hydra:\n  job_logging:\n    handlers: {x: {'()': os.makedirs, name: MARK}}\n"
    },
    "group placed into Hydra's node": {
        "experiment/x.yaml": GLOBAL + "defaults:\n  - /foo@hydra.job_logging: bar\n",
        "foo/bar.yaml": "handlers: {x: {'()': os.makedirs, name: MARK}}\n",
    },
    "file outside the folder": {
        "experiment/x.yaml": GLOBAL + "defaults:\n  - ../../outside/evil\n",
        "../outside/evil.yaml": GLOBAL + "hydra:\n  callbacks:\n    x: {_target_: os.makedirs, name: MARK}\n",
    },
    "environment": {"experiment/x.yaml": GLOBAL + "hydra: {job: {env_set: {LD_PRELOAD: x.so}}}\n"},
    "commands for the launcher": {
        "experiment/x.yaml": GLOBAL
        + "defaults:\n  - override /hydra/launcher: submitit_slurm\nhydra: {launcher: {setup: [mkdir MARK]}}\n"
    },
    "Hydra's key as a sweep's parameter": {
        "experiment/x.yaml": GLOBAL + "hydra:\n  sweeper:\n    params: {hydra.job_logging.root.x: 'os:makedirs'}\n"
    },
    "object as a sweep's parameter": {
        "experiment/x.yaml": GLOBAL + "hydra:\n  sweeper:\n    params: {+architecture.object: 'os:makedirs'}\n"
    },
}
UNREADABLE = {
    "python object": "a: !!python/object/apply:os.makedirs [MARK]\n",
    "not YAML": "a: [\n",
    "a list": "- 1\n",
    "too large": "a: " + "x" * 2**21,
    "too deep": "[" * 1500,
    "alias bomb": "a: &a [x]\n"
    + "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in itertools.pairwise("abcdefghij")),
    "merge bomb": "a: &a {x: 1}\n"
    + "".join(
        f"{c}: &{c} {{{', '.join(f'k{n}: *{b}' for n in range(9))}}}\n" for b, c in itertools.pairwise("abcdefghij")
    ),
    "many values": "a: [" + "1," * (MOST_VALUES + 1) + "]",
    "a list that holds itself": "a: &a [*a]\n",
    "an unknown alias": "a: *b\n",
    "a key given twice": "seed: 1\nseed: 2\n",
    "tabs": "latent:\n\tsize: 3\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
}


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("MARK", str(folder.parent / "executed")))


@pytest.mark.parametrize("case", HARMLESS)
def test_values_are_welcome(case, tmp_path):
    write(tmp_path / "mine", "experiment/x.yaml", HARMLESS[case])
    with create_composer(config_dir=tmp_path / "mine") as composer:
        composer.compose(["experiment=x"])


MISLED = {
    "defaults: [override /architecure: mlp]": "x.yaml: `defaults` cannot choose architecure like this; write "
    "`override /architecture: …`",
    "defaults: [override architecture: mlp]": "write `override /architecture: …`",
    "defaults: [architecture: mlp]": "write `override /architecture: …`",
    "defaults: [/architecture: mlp]": "write `override /architecture: …`",
    "defaults: [/xyzzy: mlp]": "write `override /GROUP: …`; the groups are dataset, architecture,",
    "defaults: [/optimizer/adm]": "experiment/x.yaml: optimizer=adm is not one of the choices; did you mean adam?",
    "defaults: [override /optimizer: adm]": "optimizer=adm is not one of the choices; did you mean adam?",
    "defaults: [papr]": "experiment/x.yaml: experiment=papr is not one of the choices; did you mean paper?",
    "defaults: [x]": "they lead back to themselves",
    "defaults: nope": "",
    "defaults: [3]": "look at its `defaults`",
    "defaults: [{a: b, c: d}]": "",
    "train: 3": "train=3 must be keys and values",
    "gen_div: kl": "gen_div=kl must be keys and values; YAML chooses one by `override /gen_div: kl`",
    "optimizer: adam": "optimizer=adam must be keys and values; YAML chooses one by `override /optimizer: adam`",
    "hydra: 3": "hydra=3 must be keys and values",
    "logger: wandb": "logger=wandb must be a list, as in logger=[tensorboard,wandb]",
    "hydra: {run: {dir: there}}": "hydra.run.dir=there: the folder of a run is given as run_dir=there",
    "hydra: {sweep: {dir: there}}": "hydra.sweep.dir=there: the folder of a sweep is given as run_dir=there",
}


@pytest.mark.parametrize("text", MISLED)
def test_what_yaml_cannot_mean_is_told_with_what_it_can(text, tmp_path, gantrain):
    write(tmp_path / "mine", "experiment/x.yaml", f"{GLOBAL}{text}\n")
    answer = gantrain("train", "--config-dir", "mine", "experiment=x")
    assert (answer.code, answer.out) == (2, "")
    assert MISLED[text] in answer.err
    assert len(answer.err.splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("command", [[], ["--cfg", "job"], ["-m", "seed=0,1"]], ids=["train", "--cfg", "-m"])
@pytest.mark.parametrize("case", ACTIVE)
def test_nothing_runs(case, command, tmp_path, gantrain):
    for name, text in ACTIVE[case].items():
        write(tmp_path / "mine", name, text)
    before = sorted(path.name for path in tmp_path.iterdir())
    answer = gantrain("train", "train.images=20", *command, "--config-dir", tmp_path / "mine", "experiment=x")
    assert (answer.code, "internal error" in answer.err) == (2, False), answer
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("case", UNREADABLE)
def test_files_that_are_no_plain_yaml_are_named(case, tmp_path, gantrain):
    write(tmp_path / "mine", "experiment/x.yaml", UNREADABLE[case])
    answer = gantrain("train", "--cfg", "job", "--config-dir", "mine", "experiment=x")
    assert (answer.code, answer.out) == (2, "")
    assert "experiment/x.yaml" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (tmp_path / "executed").exists()


def test_a_broken_file_that_is_not_used_is_in_nobodys_way(tmp_path, gantrain):
    write(tmp_path / "mine", "experiment/x.yaml", GLOBAL + "seed: 7\n")
    for number, text in enumerate(UNREADABLE.values()):
        write(tmp_path / "mine", f"experiment/broken{number}.yaml", text)
    answer = gantrain("train", "--cfg", "job", "--config-dir", "mine", "experiment=x")
    assert (answer.code, answer.err) == (0, "")
    assert "seed: 7" in answer.out


def test_bytes_that_are_no_text_are_named(tmp_path, gantrain):
    write(tmp_path / "mine", "experiment/x.yaml", "")
    (tmp_path / "mine/experiment/x.yaml").write_bytes(b"seed: \xff\xfe\n")
    answer = gantrain("train", "--cfg", "job", "--config-dir", "mine", "experiment=x")
    assert answer.code == 2
    assert "experiment/x.yaml cannot be read as UTF-8 text" in answer.err


def test_a_file_without_anything_changes_nothing(tmp_path, gantrain):
    write(tmp_path / "mine", "experiment/x.yaml", GLOBAL)
    plain = gantrain("train", "--cfg", "job")
    assert gantrain("train", "--cfg", "job", "--config-dir", "mine", "experiment=x") == plain


def test_an_experiment_that_is_not_global_is_told_how(tmp_path, gantrain):
    write(tmp_path / "mine", "experiment/x.yaml", "seed: 1\n")
    answer = gantrain("train", "--cfg", "job", "--config-dir", "mine", "experiment=x")
    assert answer.code == 2
    assert "# @package _global_" in answer.err


def test_links_that_lead_out_of_the_folder_are_named(tmp_path, gantrain):
    write(tmp_path / "elsewhere", "x.yaml", GLOBAL + "seed: 7\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "experiment").symlink_to(tmp_path / "elsewhere")
    answer = gantrain("train", "--cfg", "job", "--config-dir", "mine", "experiment=x")
    assert answer.code == 2
    assert "leads out of the folder" in answer.err


def test_a_file_that_would_never_be_read_is_named(tmp_path, gantrain):
    write(tmp_path / "mine", "optimizer/adam.yaml", "name: SGD\nlr: 1\n")
    answer = gantrain("train", "--cfg", "job", "--config-dir", "mine", "optimizer=adam")
    assert answer.code == 2
    assert "optimizer/adam.yaml would never be read" in answer.err


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("1", 1), ("[1, 2]", 3), ("{a: 1}", 3), ("[&a [1, 2], *a, *a]", 10), ("- &a x\n- *a", 3)],
)
def test_values_are_counted_with_their_aliases_written_out(text, count):
    assert count_values(text) == count
