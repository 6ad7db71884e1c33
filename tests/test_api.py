"""The public Python calls: repeated, inside another program of Hydra, and without a trace in the process."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import pickle
import runpy
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hydra
import matplotlib
import numpy as np
import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import gantrain
from gantrain.api import to_text
from gantrain.cli import main
from gantrain.comparison.rows import csv_text
from gantrain.config.compose import create_composer
from gantrain.config.groups import options
from gantrain.config.overrides import parse
from gantrain.errors import CheckpointError, ConfigError, DataError, GantrainError, MemoryExhaustedError, StorageError
from gantrain.networks.tables import load_architecture

TINY = {"device": "cpu", "train.images": 40, "train.batch_size": 20, "train.held_out_images": 20}
pytestmark = pytest.mark.usefixtures("plain_figures")


def train(folder: Path | str, **settings: object) -> gantrain.Run:
    """A short run on points of a ring."""
    return gantrain.train(**{"dataset": "ring", "run_dir": folder, **TINY, **settings})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> gantrain.Run:
    """A finished run with checkpoints at 20 and at 40 images."""
    folder = tmp_path_factory.mktemp("api") / "a b"
    return train(folder, gen_div="kl", **{"train.checkpoint_every_images": 20, "train.checkpoint_min_seconds": 0})


# ---------------------------------------------------------------------------------------------------------------------
# A run


def test_a_run_tells_what_it_is(run: gantrain.Run) -> None:
    assert (run.summary["status"], run.images, len(run.metrics)) == ("finished", 40, 1)
    assert (run.settings.gen_div.name, run.settings.train.batch_size) == ("kl", 20)
    assert run.sample(3, seed=1).shape == (3, 2)
    for same in (run.path, str(run.path), run, run.path / "checkpoints/last.pt"):
        assert torch.equal(run.sample(3, seed=1), gantrain.load(same).sample(3, seed=1))


def test_a_checkpoint_is_a_run_as_it_was(run: gantrain.Run, tmp_path: Path) -> None:
    file = run.path / "checkpoints/images_000000000020.pt"
    older = gantrain.load(file)
    assert (older.path, older.images, os.fspath(older)) == (run.path, 20, str(file))
    assert older.summary == run.summary
    x = run.sample(5)
    assert not torch.equal(older.sample(5), x)
    assert not torch.equal(older.log_ratio(x), run.log_ratio(x))
    for name in (file.name, f"{file.name}.sha256"):
        shutil.copy(file.with_name(name), tmp_path)
    alone = gantrain.load(tmp_path / file.name)
    assert torch.equal(alone.sample(5), older.sample(5))
    assert alone.summary == {}


def test_a_run_stays_itself_in_another_working_directory(
    run: gantrain.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path.parent)
    loaded = [gantrain.load(run.path.name), gantrain.Run(run.path.name)]
    monkeypatch.chdir(tmp_path)
    for each in loaded:
        assert (each.path, each.summary, each.images) == (run.path, run.summary, run.images)


def test_a_checkpoint_in_the_working_directory_is_of_its_run(
    run: gantrain.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path / "checkpoints")
    loaded = gantrain.load("images_000000000020.pt")
    assert (loaded.path.resolve(), loaded.images, loaded.summary) == (run.path.resolve(), 20, run.summary)
    assert main(["sample", "last.pt", "count=2", "seed=7"]) == 0
    assert (run.path / "samples/seed7/samples.npy").is_file()
    assert not Path("samples").exists()


def test_the_log_ratio_is_that_of_the_discriminator(run: gantrain.Run) -> None:
    """Its raw output, as D is read by default; the same in batches."""
    bundle = torch.load(run.path / "checkpoints/last.pt", weights_only=True)
    _, discriminator = gantrain.networks.build("mlp", shape=(2,), latent_size=2)
    discriminator.load_state_dict(bundle["state"]["discriminator"])
    x = gantrain.data.load("ring").held_out(600)
    with torch.no_grad():
        torch.testing.assert_close(run.log_ratio(x), discriminator.eval()(x))
    assert run.log_ratio(x.double()).dtype == torch.float32


def test_samples_that_do_not_fit_have_no_log_ratio(run: gantrain.Run, tmp_path: Path) -> None:
    tensors = [torch.zeros(3, 1), torch.zeros(2), torch.zeros(3, 2, dtype=torch.uint8)]
    for samples in (*tensors, np.zeros((3, 2)), [[0.0, 0.0]]):
        with pytest.raises(DataError, match="floating-point"):
            run.log_ratio(samples)
    other = train(tmp_path / "run", disc_div="total_variation", gen_div="total_variation")
    with pytest.raises(ConfigError, match="no log-ratio"):
        other.log_ratio(torch.zeros(3, 2))


def test_a_generator_is_a_copy(run: gantrain.Run) -> None:
    generator, before = run.generator(), run.sample(4)
    assert (generator.images, generator.shape, generator.passed_over) == (40, (2,), [])
    assert torch.equal(generator(generator.latents.draw(4)).isfinite(), torch.ones(4, 2, dtype=torch.bool))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.zero_()
    assert torch.equal(run.sample(4), before)


def test_a_run_goes_on_and_the_object_stays(tmp_path: Path) -> None:
    first = train(tmp_path / "run")
    before = first.sample(3)
    again = gantrain.resume(first, **{"train.images": 8e1})
    assert (again.path, again.summary["images"], again.images, first.images) == (first.path, 80, 80, 40)
    assert torch.equal(first.sample(3), before)
    assert not torch.equal(again.sample(3), before)
    with pytest.raises(CheckpointError, match="another one"):
        gantrain.resume(first.path, seed=3)


def test_a_run_that_nobody_has_looked_at_stays_too(tmp_path: Path) -> None:
    first = train(tmp_path / "run")
    again = gantrain.resume(first, **{"train.images": 80})
    assert (first.images, again.images) == (40, 80)
    assert not torch.equal(first.sample(3), again.sample(3))


def test_code_of_the_users_own_is_named_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_pair.py").write_text(
        "from torch import nn\n"
        "def pair(data_shape, latent_size):\n"
        "    return nn.Linear(latent_size, 2), nn.Linear(2, 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = train(tmp_path / "run", **{"architecture.object": "own_pair:pair"})
    assert (run.sample(3).shape, run.log_ratio(run.sample(3)).shape) == ((3, 2), (3,))
    loaded = gantrain.load(run.path)
    assert loaded.images == 40
    for needs_code in (loaded.generator, lambda: loaded.log_ratio(torch.zeros(3, 2))):
        with pytest.raises(ConfigError, match=r"names code.*own_pair:pair") as caught:
            needs_code()
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "as from a process of a sweep"
    with pytest.raises(ConfigError, match=r"did you mean architecture\.object"):
        gantrain.load(run.path, object="own_pair:pair")
    named = gantrain.load(run.path, **{"architecture.object": "own_pair:pair"})
    assert torch.equal(named.sample(3), run.sample(3))
    assert gantrain.evaluate(named, metrics="modes", count=100)["images"] == 40
    assert torch.equal(gantrain.load(named).sample(3), run.sample(3))
    longer = gantrain.resume(named, **{"train.images": 80})
    assert (longer.images, longer.object) == (80, "own_pair:pair")


def test_a_leading_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell replaces it in a Python call, or in quotes."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run = train("~/run")
    assert run.path == tmp_path / "home" / "run"
    assert gantrain.resume("~/run").images == gantrain.load("~/run").images == 40
    assert gantrain.evaluate("~/run", metrics="modes", count=100, out="~/numbers")["images"] == 40
    gantrain.compare("~/run")
    sweep = ["train", "-m", "dataset=ring", "seed=0,1", *[f"{key}={value}" for key, value in TINY.items()]]
    verify = ["verify", "case=gaussians", "images=0", "held_out=1000", "out=~/verified"]
    for typed in (["sample", "~/run", "out=~/samples"], verify, [*sweep, "run_dir=~/sweep"]):
        assert main(typed) == 0
    found = {path.name for path in (tmp_path / "home").iterdir()}
    assert found == {"run", "numbers", "samples", "verified", "sweep"}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def test_evaluate_returns_what_is_written(run: gantrain.Run, tmp_path: Path) -> None:
    found = gantrain.evaluate(run, metrics=["modes"], count=100, seed=1)
    assert found == json.loads((run.path / "evaluation.json").read_text())
    assert found["metrics"].keys() == {"quality/high_quality_share", "diversity/modes", "diversity/modes_assigned"}
    assert (found["count"], found["seed"], found["images"]) == (100, 1, 40)
    older = gantrain.load(run.path / "checkpoints/images_000000000020.pt")
    assert gantrain.evaluate(older, metrics="modes", count=100, out=tmp_path)["images"] == 20
    assert json.loads((run.path / "evaluation.json").read_text())["images"] == 40


def test_stored_samples_are_evaluated(run: gantrain.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("points.npy", run.sample(100, seed=1).numpy())
    stored = gantrain.evaluate("points.npy", dataset="ring", metrics=["modes"])
    assert stored["metrics"] == gantrain.evaluate(run, metrics=["modes"], count=100, seed=1)["metrics"]
    assert Path("evaluation/evaluation.json").is_file()


def test_a_comparison_has_the_rows_of_its_csv(run: gantrain.Run, tmp_path: Path) -> None:
    other = train(tmp_path / "other", gen_div="js", seed=1)
    found = gantrain.compare(run, tmp_path)
    assert [each.path for each in found.runs] == [run.path, other.path]
    heads, *lines = csv.reader(io.StringIO(csv_text(found)))
    assert [list(row) for row in found.table] == [heads, heads]
    for row, line in zip(found.table, lines, strict=True):
        assert ["" if value is None else str(value) for value in row.values()] == line
    assert [(row["gen_div"], row["seed"], row["images"]) for row in found.table] == [("kl", 0, 40), ("js", 1, 40)]
    assert found.table[1]["loss/generator"] == other.metrics[-1]["loss/generator"]


def test_rows_are_data_frames_where_pandas_is_installed(run: gantrain.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    reports, rows = run.metrics, gantrain.compare(run).table
    assert (type(reports), type(rows)) == (list, list)

    class DataFrame(list):
        """Stands for that of pandas."""

    pandas = type(sys)("pandas")
    pandas.DataFrame = DataFrame
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert isinstance(run.metrics, DataFrame)
    assert isinstance(gantrain.compare(run).table, DataFrame)
    assert (run.metrics, gantrain.compare(run).table) == (reports, rows)


# ---------------------------------------------------------------------------------------------------------------------
# Errors, and the process around


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"gen_div": "kll"}, ConfigError, "did you mean kl"),
        ({"sed": 1}, ConfigError, "did you mean seed"),
        ({"--help": 1}, ConfigError, "no flag"),
        ({"experiment": "paper_figure2"}, ConfigError, "is a sweep"),
        ({"config_dir": "no where"}, ConfigError, "is not a folder"),
        ({"dataset": "folder", "dataset.path": Path("no where")}, DataError, "no where"),
        ({"run_dir": "file/run"}, StorageError, "cannot be written"),
    ],
)
def test_errors_are_exceptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, error: type, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(error, match=words):
        gantrain.train(**settings)


def test_every_call_refuses_what_cannot_be(run: gantrain.Run, tmp_path: Path) -> None:
    (tmp_path / "sweep/0/checkpoints").mkdir(parents=True)
    refused = [
        (lambda: gantrain.load(tmp_path / "no where"), CheckpointError, "does not exist"),
        (lambda: gantrain.load(tmp_path / "sweep/0"), CheckpointError, "no usable checkpoint"),
        (lambda: gantrain.load(tmp_path / "sweep"), CheckpointError, "holds 1 of them"),
        (lambda: gantrain.evaluate(tmp_path / "sweep"), CheckpointError, "holds 1 of them"),
        (lambda: gantrain.evaluate(tmp_path / "no where"), CheckpointError, "does not exist"),
        (lambda: gantrain.evaluate(run, metrics=["mode"]), ConfigError, "metrics=mode"),
        (lambda: gantrain.evaluate(run, cuont=100), ConfigError, "did you mean count"),
        (lambda: gantrain.compare(tmp_path / "no where"), DataError, "not a folder"),
        (gantrain.compare, DataError, "needs runs"),
        (lambda: gantrain.resume(run, run_dir="x"), ConfigError, "in its own folder"),
        (lambda: gantrain.resume(gantrain.load(run.path / "checkpoints/last.pt")), CheckpointError, "no.* run folder"),
        (lambda: gantrain.networks.build("mpl", (2,), 2), ConfigError, "did you mean mlp"),
        (lambda: gantrain.Objective("gna", "kl"), ConfigError, "disc_div=gna"),
        (lambda: gantrain.Objective("gan", "lk"), ConfigError, "gen_div=lk"),
        (lambda: run.sample(0), ConfigError, "at least 1"),
    ]
    for call, error, words in refused:
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(28, "No space left on device", "file"), StorageError),
        (MemoryError(), MemoryExhaustedError),
        (RuntimeError("CUDA out of memory"), MemoryExhaustedError),
        (RuntimeError("another"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ConfigError("ours"), ConfigError),
    ],
)
def test_failures_of_the_machine_are_errors_of_ours(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, expected: type
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("gantrain.api.create_composer", fail)
    with pytest.raises(expected) as caught:
        gantrain.train()
    assert isinstance(caught.value, GantrainError) or caught.value is raised


def test_nothing_is_left_behind_in_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside another program of Hydra, with its own handlers of signals and logs, and in a thread of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.yaml").write_text("defaults: [schema, _self_]\nmine: 1\n")
    monkeypatch.setattr(ConfigStore.instance(), "repo", {**ConfigStore.instance().repo})
    ConfigStore.instance().store(name="schema", node={"theirs": 2})
    matplotlib.use("svg")

    def state() -> list[object]:
        signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        place = [logging.getLogger().handlers[:], logging.getLogger().level, sys.argv[:], sys.path[:], os.getcwd()]
        figures = [matplotlib.get_backend(), dict(matplotlib.rcParams)]
        drawn = [torch.get_rng_state().tolist(), str(np.random.get_state())]
        of_torch = [torch.get_num_threads(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()]
        return [*signals, *place, *figures, *drawn, *of_torch]

    with hydra.initialize_config_dir(str(tmp_path / "theirs"), version_base="1.2"):
        app, before = GlobalHydra.instance().hydra, state()
        for number in range(2):
            run = train(Path(f"run{number}"))
            gantrain.evaluate(run, metrics=["modes"], count=100)
            gantrain.compare(run)
        with ThreadPoolExecutor() as pool:
            assert pool.submit(gantrain.resume, run, **{"train.images": 60}).result().images == 60
        assert GlobalHydra.instance().hydra is app
        assert hydra.compose("config") == {"theirs": 2, "mine": 1}
        for now, then in zip(state(), before, strict=True):
            assert now == then


def test_defaults_of_torch_change_no_number(run: gantrain.Run, tmp_path: Path) -> None:
    """As a notebook sets them for its own computations."""
    same = {"gen_div": "kl", "train.checkpoint_every_images": 20, "train.checkpoint_min_seconds": 0}
    x, log_ratio = run.sample(3), run.log_ratio(run.sample(3))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"):
            other = train(tmp_path / "run", **same)
            assert torch.equal(other.sample(3), x)
            again = gantrain.load(run.path)
            assert torch.equal(again.log_ratio(again.sample(3)), log_ratio)
            assert torch.get_default_device().type == "meta"
        generator = again.generator()
        assert generator(generator.latents.draw(2)).dtype == torch.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


class Written:
    """A stream as programs make them to keep what is printed: it has no more than what print() needs."""

    text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


class Failing(io.StringIO):
    """A stream without a file of the system, to which nothing can be written."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_standard_output_may_be_any_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, stream in enumerate((Written(), Failing(), None)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert train(tmp_path / str(number)).images == 40
        assert not isinstance(stream, Written) or "finished; pictures" in stream.text


# ---------------------------------------------------------------------------------------------------------------------
# The package


@pytest.mark.parametrize(
    "value",
    [
        *(
            "kl",
            "a b",
            "it's",
            "null",
            "true",
            "1e3",
            "a,b",
            "",
            None,
            True,
            3,
            0.5,
            np.float64(1e-4),
            np.float32(0.25),
        ),
        *(np.int64(5), np.bool_(True), torch.tensor(3), np.float64(1)),
        *([1, 2.5], ["a", "b c"], {"a": 1}),
    ],
)
def test_values_come_back_from_the_grammar(value: object) -> None:
    assert parse([f"x={to_text(value)}"])[0].override.value() == value


def test_the_package_offers_its_names_without_torch() -> None:
    """Torch and matplotlib are imported by the first call that needs them."""
    code = (
        "import sys, gantrain\n"
        "assert gantrain.__all__ == dir(gantrain)\n"
        "assert len([getattr(gantrain, name) for name in gantrain.__all__]) == 15\n"
        "gantrain.Objective('gan', 'kl'), gantrain.divergences.get('js'), gantrain.errors.ConfigError\n"
        "print({'torch', 'torchvision', 'matplotlib', 'pandas'} & {*sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        gantrain.trian  # noqa: B018


def test_the_module_is_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gantrain", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("gantrain", run_name="__main__")
    assert capsys.readouterr().out == f"gantrain {gantrain.__version__}\n"


def test_an_objective_takes_names_or_divergences() -> None:
    get = gantrain.divergences.get
    real, fake = torch.randn(2, 50).double()
    losses = [
        gantrain.Objective(*pair).discriminator_loss(real, fake)[0].item()
        for pair in (("js", "alpha_0.3"), (get("js"), get("alpha_0.3")), ("js", get("alpha_0.3")))
    ]
    assert len(set(losses)) == 1
    assert gantrain.Objective("gan", "dual_kl").gen_div.name == "dual_kl"


@pytest.mark.parametrize("name", options("architecture"))
def test_networks_are_built_by_the_name_of_their_tables(name: str) -> None:
    """The tables are those that Hydra composes."""
    with create_composer() as composer:
        assert load_architecture(name) == composer.compose([f"architecture={name}"]).tree.architecture


def test_weights_of_named_networks_are_drawn_by_torch() -> None:
    pairs = []
    for _ in range(2):
        torch.manual_seed(3)
        pairs.append(gantrain.networks.build("mlp", shape=(2,), latent_size=2))
    latents = torch.randn(5, 2)
    (samples, outputs), (same, equal) = ((g(latents), d(g(latents))) for g, d in pairs)
    assert (samples.shape, outputs.shape) == ((5, 2), (5,))
    assert torch.equal(samples, same)
    assert torch.equal(outputs, equal)
