"""A folder of YAML that somebody sent composes values, and makes nothing run."""

import pytest

from gantrain.errors import ConfigError
from gantrain.foreign import refuse_active_yaml

HARMLESS = {
    "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /dataset: ring\n",
    "architecture/mine.yaml": "name: mine\ngenerator:\n  - {op: affine, features: data}\n",
    "config_more.yaml": "hydra:\n  run: {dir: there}\n  sweep: {dir: there, subdir: x}\n  mode: MULTIRUN\n",
    "experiment/sweep.yaml": "hydra:\n  sweeper:\n    params: {gen_div: 'kl,js'}\n",
    "experiment/cluster.yaml": "# @package _global_\ndefaults:\n  - override /hydra/launcher: joblib\n",
    "empty.yaml": "",
}
ACTIVE = {
    "callback": ("experiment/x.yaml", "hydra:\n  callbacks:\n    x: {_target_: os.system}\n"),
    "launcher": ("experiment/x.yaml", "hydra:\n  launcher: {_target_: os.system, command: id}\n"),
    "logging factory": ("x.yaml", "hydra:\n  job_logging:\n    handlers: {x: {'()': os.system}}\n"),
    "search path": ("x.yaml", "hydra:\n  searchpath: [pkg://os]\n"),
    "environment": ("x.yaml", "hydra: {job: {env_set: {LD_PRELOAD: x.so}}}\n"),
    "package header": ("experiment/x.yaml", "# @package hydra.callbacks\nx: {a: b}\n"),
    "hydra's own group": ("hydra/launcher/basic.yaml", "a: b\n"),
    "default": ("experiment/x.yaml", "defaults:\n  - override /hydra/job_logging: mine\n"),
    "default as text": ("experiment/x.yaml", "defaults:\n  - /hydra/callbacks/mine\n"),
    "target anywhere": ("optimizer/x.yaml", "name: Adam\nsub: [{_target_: os.system}]\n"),
    "python object": ("x.yaml", "a: !!python/object/apply:os.system [id]\n"),
    "not YAML": ("x.yaml", "a: [\n"),
    "too large": ("x.yaml", "a: " + "x" * 2**21),
    "too deep": ("x.yaml", "[" * 5000),
}


def write(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def test_values_are_welcome(tmp_path):
    for name, text in HARMLESS.items():
        write(tmp_path, name, text)
    refuse_active_yaml(tmp_path)


@pytest.mark.parametrize("case", ACTIVE)
def test_what_could_run_is_refused_with_its_file(case, tmp_path):
    name, text = ACTIVE[case]
    write(tmp_path, name, text)
    with pytest.raises(ConfigError, match=name.rpartition("/")[2]):
        refuse_active_yaml(tmp_path)


def test_the_command_line_looks_before_hydra_does(tmp_path, gantrain):
    name, text = ACTIVE["callback"]
    write(tmp_path / "mine", name, text)
    for command in (["train", "train.images=100"], ["train", "--cfg", "job"], ["train", "-m", "seed=0,1"]):
        answer = gantrain(*command, "--config-dir", tmp_path / "mine", "+experiment=x")
        assert answer.code == 2
        assert "_target_" in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
