"""The wheel holds all that a user needs, and works where there is no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gantrain.cli import main

CHECKOUT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder]
    subprocess.run([*PIP, "wheel", *options, CHECKOUT], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", folder, wheel], check=True)
    return folder


@pytest.fixture
def run(installed, tmp_path, monkeypatch):
    """Run a command in an empty folder, where `gantrain` is the wheel's and not the checkout's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(installed))
    monkeypatch.setenv("PATH", f"{installed / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def output(*command):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return output


def relative_files(folder, pattern):
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern)}


def test_the_wheel_holds_the_package_its_configs_and_its_licence_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    information = {name for name in names if name.startswith(f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/")}
    modules = relative_files(CHECKOUT, "gantrain/**/*.py") | relative_files(CHECKOUT, "hydra_plugins/*.py")
    modules |= relative_files(CHECKOUT, "gantrain/**/*.jinja")
    configs = {f"gantrain/conf/{name}" for name in relative_files(CHECKOUT / "conf", "*.yaml")}
    assert modules
    assert configs
    assert names - information == modules | configs | {"gantrain/data/digits.npz", "gantrain/py.typed"}
    assert any(name.endswith("/licenses/LICENSE") for name in information)


def test_every_config_composes_as_in_the_checkout(run, capsys):
    show = ("train", "--cfg", "job", "dataset=cifar10", "experiment=paper", "gen_div=kl")
    from_wheel = run("gantrain", *show)
    assert main(list(show)) == 0
    assert from_wheel == capsys.readouterr().out
    assert "lr:" in from_wheel


def test_train_and_sample_from_an_empty_folder(run, installed, tmp_path):
    where = Path(run(sys.executable, "-c", "import gantrain; print(gantrain.__file__)").strip())
    assert where.is_relative_to(installed)
    run("gantrain", "train", "train.images=500", "run_dir=run")
    run("gantrain", "sample", "run", "count=4", "out=drawn")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "drawn"}
    assert relative_files(tmp_path / "drawn", "*") == {*(f"0000{n}.png" for n in range(4)), "grid.png"}
