"""A folder of YAML that somebody sent composes values, and makes nothing run."""

import itertools

import pytest

from gantrain.commands import train
from gantrain.errors import ConfigError
from gantrain.foreign import refuse_unreadable

GLOBAL = "# @package _global_\n"
HARMLESS = {
    "dataset": GLOBAL + "defaults:\n  - override /dataset: ring\n",
    "folders": GLOBAL + "hydra:\n  run: {dir: there}\n  sweep: {dir: there, subdir: x}\n",
    "sweep": GLOBAL + "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {gen_div: 'kl,js'}\n",
    "launcher": GLOBAL + "defaults:\n  - override /hydra/launcher: basic\n",
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
    + "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in itertools.pairwise("abcdefghijklmn")),
}


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("MARK", str(folder.parent / "executed")))


@pytest.mark.parametrize("case", HARMLESS)
def test_values_are_welcome(case, tmp_path):
    write(tmp_path / "mine", "experiment/x.yaml", HARMLESS[case])
    flags = train.parse(["--config-dir", str(tmp_path / "mine")])
    train.preview(["experiment=x"], flags)


@pytest.mark.parametrize("command", [[], ["--cfg", "job"], ["-m", "seed=0,1"]], ids=["train", "--cfg", "-m"])
@pytest.mark.parametrize("case", ACTIVE)
def test_nothing_runs(case, command, tmp_path, gantrain):
    for name, text in ACTIVE[case].items():
        write(tmp_path / "mine", name, text)
    before = sorted(path.name for path in tmp_path.iterdir())
    answer = gantrain("train", "train.images=20", *command, "--config-dir", tmp_path / "mine", "experiment=x")
    assert answer.code == 2, answer
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("case", UNREADABLE)
def test_files_that_are_no_plain_yaml_are_named(case, tmp_path):
    write(tmp_path / "mine", "experiment/x.yaml", UNREADABLE[case])
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        refuse_unreadable(tmp_path / "mine")
    assert not (tmp_path / "executed").exists()


def test_a_link_to_another_folder_is_named(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "experiment").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="experiment is a link"):
        refuse_unreadable(tmp_path / "mine")
