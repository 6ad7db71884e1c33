"""An interrupted and resumed run equals the uninterrupted one, bit for bit on a CPU."""

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from support.runs import SMALL, assert_equal, assert_equal_runs, assert_equal_states, train, train_until
from support.tolerance import assert_close_to_largest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gantrain
from gantrain import data, networks
from gantrain.cli import main
from gantrain.errors import CheckpointError, ConfigError
from gantrain.networks.latents import Latents
from gantrain.objectives import divergences
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective
from gantrain.objectives.weighting import DEFAULT, Weighting
from gantrain.runs import checkpoints
from gantrain.runs.metrics_file import read_metrics
from gantrain.training.iteration import Iteration
from gantrain.training.setup import Schedule, TrainingSetup
from gantrain.training.state import State, create_average

# Every option that could keep a state of its own is in one of these runs; `whole` has the defaults.
GAMES = {
    "ratio, three D steps, no average": ["gen_objective=ratio", "gen_div=kl", "train.discriminator_steps=3", "ema=0"],
    "alternative, uniform latents, sgd": ["gen_objective=alternative", "latent.prior=uniform", "optimizer=sgd"],
    "nowozin, instance noise": ["head=nowozin", "disc_div=jeffreys", "gen_div=pearson", "regularizer=instance_noise"],
    "ratio head, label smoothing, rmsprop": [
        *("head=ratio", "disc_div=pearson", "regularizer=label_smoothing", "optimizer=rmsprop")
    ],
    "no ratio": ["disc_div=total_variation", "gen_div=total_variation"],
    "batch norm, dropout, flips, r1": ["architecture=conv8", "dataset.flip=true", "regularizer=r1"],
    "points, gradient penalty": ["dataset=ring", "regularizer=gradient_penalty"],
    "critic without a ratio": ["critic=hinge", "train.discriminator_steps=2"],
    "critic with a constant, its own loss": ["critic=relativistic", "critic.pairs=all", "dataset=ring"],
    "critic with a constant, kl": ["critic=donsker_varadhan", "gen_div=kl", "update=simultaneous"],
    "schedules": [
        *("optimizer.lr={from: 1e-3, to: 1e-4, images: 800, shape: cosine}", "ema={half_life: 300, ramp: 0.05}"),
        *("regularizer=r1", "regularizer.weight={from: 10, to: 0.1, images: 700, shape: exponential}"),
    ],
    "schedules of the average and of noise": [
        *("ema={from: 0.5, to: 0.99, images: 800}", "regularizer=instance_noise"),
        "regularizer.std={from: 0.5, to: 0.01, images: 700}",
    ],
    "diffaugment, r1": [
        *("augment=diffaugment", "augment.p={from: 0, to: 1, images: 700}", "regularizer=r1", "dataset.flip=true"),
    ],
    "ada by signs": ["augment=ada", "augment.p=0.2", "augment.interval=3", "augment.ramp_images=2000"],
    "ada by held-out data, simultaneous": [
        *("augment=ada", "augment.measure=held_out", "augment.p=0.2", "augment.ramp_images=2000"),
        *("update=simultaneous", "train.discriminator_steps=2"),
    ],
    "lecam and a lazy r2, three D steps": [
        *(
            "regularizer=[lecam,r2,r1]",
            "regularizer.r2.every=4",
            "regularizer.r1.sigma=0.1",
            "regularizer.r1.share=0.3",
        ),
        "train.discriminator_steps=3",
    ],
    "simultaneous, balanced, lecam, lazy dragan": [
        *("regularizer=[balanced,lecam,dragan]", "regularizer.dragan.every=3", "update=simultaneous"),
    ],
    "consistency, clipping, feature matching": [
        *("regularizer=[consistency,weight_clipping,feature_matching]", "regularizer.consistency.fake_weight=1"),
        *("regularizer.feature_matching.adversarial=0.5", "regularizer.weight_clipping.limit=0.1"),
    ],
    "spectral norm, minibatch layers": [
        "architecture.generator=[{op: linear, features: 16, norm: spectral, activation: relu},"
        "{op: linear, features: data, norm: spectral, activation: sigmoid}]",
        "architecture.discriminator=[{op: linear, features: 16, norm: spectral, activation: leaky_relu},"
        "{op: minibatch_stddev, group: 5},{op: minibatch_discrimination},{op: linear, features: 1}]",
    ],
    "few parameters, simultaneous": ["dataset=mixture1d", "gen_div=kl", "update=simultaneous"],
}
LAYER = {"op": "linear", "features": 8, "activation": "leaky_relu"}
TABLE = {
    "name": "test",
    "generator": [LAYER | {"norm": "batch"}, {"op": "linear", "features": "data"}],
    "discriminator": [LAYER | {"dropout": 0.2}, {"op": "linear", "features": 1}],
}


pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The uninterrupted default run; not to be written into."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(folder) == 0
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """The default run, stopped at 500: no multiple of any interval, so a report's statistics are half gathered."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        assert train_until(patch, 500, folder) == 143
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    return folder


@pytest.fixture
def stopped(interrupted, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(interrupted, tmp_path / "stopped")


def set_back(folder: Path) -> None:
    """Leave a finished run as if it had been killed after its last checkpoint but one."""
    newest, saved, *_ = checkpoints.list_files(folder / "checkpoints")
    images = checkpoints.load(saved)["images"]
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(row for row in rows if json.loads(row)["images"] <= images))
    later = [path for path in (folder / "samples").glob("images_*") if path.stem > f"images_{images:012}"]
    for path in (*later, newest, folder / "losses.png", folder / "summary.json"):
        path.unlink()


@pytest.mark.parametrize("game", GAMES)
def test_a_resumed_run_equals_the_uninterrupted_one(game, tmp_path):
    """From 500 images, or some more, where a report's statistics are half gathered."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    lengths = "train.images=700", "train.report_every_images=350", "train.checkpoint_every_images=500"
    assert train(whole, *GAMES[game], *lengths) == 0
    set_back(shutil.copytree(whole, resumed, symlinks=True))
    assert main(["resume", str(resumed)]) == 0
    assert json.loads((resumed / "summary.json").read_text())["resumed_at_images"][-1] in (500, 600)
    assert_equal_runs(whole, resumed)


def objectives(name: str) -> Iterator[Objective]:
    """Every game in which both players target a divergence."""
    for objective, head in itertools.product(GENERATOR_OBJECTIVES, ("log_ratio", "nowozin", "ratio")):
        try:
            yield Objective(divergences.get(name), divergences.get(name), objective, head)
        except ConfigError:
            continue


def new_state() -> State:
    torch.manual_seed(0)
    generator, discriminator = networks.build(TABLE, (2,), 4)
    adam = partial(torch.optim.Adam, lr=1e-3)
    return State(
        generator,
        discriminator,
        adam(generator.parameters()),
        adam(discriminator.parameters()),
        create_average(generator),
    )


def bundle(state: State) -> dict:
    rest: dict = {"config": {}, "generator": {}, "data": {}, "made_with": {}}
    return {"format": checkpoints.FORMAT, "images": state.images, "state": state.state_dict()} | rest


@pytest.mark.parametrize("name", divergences.CATALOGUE)
def test_every_divergence_goes_on_as_if_nothing_had_been(name, tmp_path):
    ring, played = data.load("ring", size=2), 0
    for number, objective in enumerate(objectives(name)):
        experiment = TrainingSetup(objective, ring, Latents(4), Schedule(images=80, batch_size=10))
        whole, stopped, resumed = new_state(), new_state(), new_state()
        for state, steps in ((whole, 4), (stopped, 2)):
            iteration = Iteration(state, experiment)
            for _ in range(steps):
                iteration.play()
        saved = checkpoints.load(checkpoints.save(tmp_path / str(number), bundle(stopped), keep=2))
        resumed.load_state_dict(saved["state"], saved["images"])
        iteration = Iteration(resumed, experiment)
        for _ in range(2):
            iteration.play()
        assert_equal(whole.state_dict(), resumed.state_dict())
        played += 1
    assert played >= 2


def spoiled() -> dict:
    """Ways in which a state may not fit, each as what it does to one."""

    def cut(tensor):
        return tensor.flatten()[:-1]

    return {
        "generator": lambda s: s.pop("generator"),
        "statistics": lambda s: s.pop("statistics"),
        "other": lambda s: s.update(other={}),
        "discriminator.": lambda s: s["discriminator"].popitem(),
        "average": lambda s: s.update(average=[1, 2]),
        "float64": lambda s: s["generator"].update({k: v.double() for k, v in s["generator"].items()}),
        "generator.": lambda s: s["generator"].update({k: cut(v) for k, v in s["generator"].items() if v.dim()}),
        "discriminator_optimizer.state:": lambda s: s["discriminator_optimizer"].update(state={}),
        "discriminator_optimizer.state.0.exp_avg:": lambda s: s["discriminator_optimizer"]["state"][0].pop("exp_avg"),
        "generator_optimizer.state.0.step:": lambda s: s["generator_optimizer"]["state"][0].update(step="many"),
        "generator_optimizer.state.7": lambda s: s["generator_optimizer"]["state"].update({7: {"step": 1}}),
        "generator_optimizer": lambda s: s.update(generator_optimizer=None),
        "statistics.x": lambda s: s["statistics"].update(x=torch.zeros(5)),
    }


@pytest.mark.parametrize("name", spoiled())
def test_a_state_that_does_not_fit_is_refused_before_anything_changes(name, tmp_path):
    ring = data.load("ring", size=2)
    game = Objective(divergences.get("gan"), divergences.get("kl"))
    state = new_state()
    Iteration(state, TrainingSetup(game, ring, Latents(4), Schedule(images=80, batch_size=10))).play()
    saved = checkpoints.load(checkpoints.save(tmp_path, bundle(state), keep=2))["state"]
    spoiled()[name](saved)
    other = new_state()
    with pytest.raises(CheckpointError) as refused:
        other.load_state_dict(saved, 10)
    assert name in str(refused.value)
    assert_equal(other.state_dict(), new_state().state_dict())
    assert other.images == 0


def test_falling_back_to_an_older_checkpoint_changes_nothing(whole, stopped, monkeypatch, capsys):
    """And another interruption after it."""
    newest = checkpoints.list_files(stopped / "checkpoints")[0]
    newest.write_bytes(newest.read_bytes()[:-7])  # as a machine that died while writing would leave it
    assert train_until(monkeypatch, 650, stopped, "resume=auto") == 143
    assert newest.name in capsys.readouterr().out
    assert train(stopped, "resume=auto") == 0
    assert_equal_runs(whole, stopped)
    scalars = EventAccumulator(str(stopped)).Reload().Scalars("loss/generator")
    steps = [event.step for event in scalars]
    assert steps == [row["images"] for row in read_metrics(whole / "metrics.jsonl")]


@pytest.mark.parametrize("part", ["average", "generator_optimizer", "statistics", "images"])
def test_the_comparison_notices_the_loss_of_a_part_of_the_state(part, whole, stopped):
    earlier = checkpoints.load(checkpoints.list_files(whole / "checkpoints")[-1])
    path, bundle, _ = checkpoints.load_newest(stopped / "checkpoints")
    path.unlink()
    if part == "images":
        bundle["images"] = earlier["images"]
    else:
        bundle["state"][part] = earlier["state"][part]
    checkpoints.save(path.parent, bundle, keep=10)
    assert main(["resume", str(stopped)]) == 0
    with pytest.raises(AssertionError):
        assert_equal_runs(whole, stopped)


def test_reporting_sampling_and_saving_do_not_change_the_weights(tmp_path):
    for name, interval in (("often", 50), ("seldom", 9999)):
        every = [f"train.{what}_every_images={interval}" for what in ("report", "sample", "checkpoint")]
        assert train(tmp_path / name, "architecture=conv8", "train.images=300", *every) == 0
    assert_equal_states(tmp_path / "often", tmp_path / "seldom")


def test_a_finished_run_whose_end_is_damaged_comes_to_it_again(whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "run")
    newest = checkpoints.list_files(folder / "checkpoints")[0]
    os.truncate(newest, 9000)
    assert main(["resume", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"passed over: {newest}" in out
    assert "the next 100 images are trained again" in out
    assert_equal_runs(whole, folder)


def test_a_finished_run_can_be_made_longer(whole, tmp_path):
    assert train(tmp_path / "short", "train.images=600") == 0
    assert main(["resume", str(tmp_path / "short"), "train.images=1000"]) == 0
    assert_equal_states(whole, tmp_path / "short")


def test_data_that_changed_are_refused(stopped, capsys):
    path, bundle, _ = checkpoints.load_newest(stopped / "checkpoints")
    checkpoints.save(path.parent, bundle | {"data": bundle["data"] | {"fingerprint": "of other images"}}, keep=9)
    assert main(["resume", str(stopped)]) == 4
    assert "fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["run_dir=elsewhere", "resume=auto", "train.images=10"])
def test_a_resume_that_could_not_do_what_is_typed_is_refused(typed, whole, capsys):
    assert main(["resume", str(whole), typed]) in (2, 4)
    assert typed.partition("=")[0] in capsys.readouterr().err


def test_a_run_that_ended_before_its_first_checkpoint_starts_again(tmp_path):
    folder, empty = tmp_path / "run", tmp_path / "empty"
    empty.mkdir()
    assert train(folder, "dataset=folder", f"dataset.path={tmp_path / 'missing'}") == 3
    assert not folder.exists()
    assert train(folder, "dataset=folder", f"dataset.path={empty}") == 3
    assert (folder / "summary.json").exists()
    assert train(folder) == 0


def test_a_finished_run_whose_checkpoints_are_gone_is_not_trained_again(whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    assert train(folder, "resume=auto") == 4
    assert "no usable checkpoint" in capsys.readouterr().err


def test_epochs_and_images_are_one_length(tmp_path, capsys):
    assert train(tmp_path / "run", "train.epochs=1") == 2  # SMALL types train.images
    assert "two names of one length" in capsys.readouterr().err
    epochs = [text for text in SMALL if not text.startswith("train.images")]
    assert main(["train", f"run_dir={tmp_path / 'run'}", *epochs, "train.epochs=0.5"]) == 0
    assert main(["resume", str(tmp_path / "run"), "train.images=1000"]) == 0
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["images"] == 1000


def test_epochs_that_end_before_the_checkpoint_are_refused(whole, tmp_path, capsys):
    """The digits have 1,617 training images; the run is at 1,000."""
    run = shutil.copytree(whole, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["resume", str(run), "train.epochs=0.5"]) == 4
    assert "train.epochs=0.5 lies before the checkpoint, which is at 1,000 images" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_finished_run_whose_batch_does_not_divide_its_length_is_finished(tmp_path, capsys):
    """Also if it was killed between its last checkpoint and its summary, or if the summary is empty."""
    folder, odd = tmp_path / "run", ("train.images=120", "train.batch_size=64")
    assert train(folder, *odd) == 0
    for summary in (None, "", json.dumps({"status": "running"})):
        if summary is not None:
            (folder / "summary.json").write_text(summary)
        before = {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
        assert main(["resume", str(folder)]) == 0
        assert train(folder, *odd, "resume=auto") == 0
        assert {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before
        assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
        assert json.loads((folder / "summary.json").read_text())["images"] == 128
    assert main(["resume", str(folder), "train.images=64"]) == 4  # after which it would have ended
    assert "lies before the checkpoint" in capsys.readouterr().err


def remove_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")


def test_a_run_that_lost_its_checkpoints_does_not_begin_again(stopped, capsys):
    remove_checkpoints(stopped)
    summary = json.loads((stopped / "summary.json").read_text())
    rows = read_metrics(stopped / "metrics.jsonl")
    # As a run is left that was killed: the reports alone show the checkpoint at 300 images.
    for ending in (summary, {"status": "running", "started": summary["started"]}):
        (stopped / "summary.json").write_text(json.dumps(ending))
        assert train(stopped, "resume=auto") == 4
        assert main(["resume", str(stopped)]) == 4
        assert capsys.readouterr().err.count("no checkpoint is left") == 2
    assert read_metrics(stopped / "metrics.jsonl") == rows


def test_a_run_that_was_killed_before_its_first_checkpoint(stopped, whole, tmp_path, capsys):
    """It is started again by its own command alone, with the data and the config that it had."""
    remove_checkpoints(stopped)
    summary = json.loads((stopped / "summary.json").read_text())
    killed = {key: summary[key] for key in ("started", "data")} | {"status": "running"}
    (stopped / "summary.json").write_text(json.dumps(killed))
    rows = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text(rows[0])
    for asked in ("sample", "evaluate", "resume"):
        assert main([asked, str(stopped)]) == 4
        command = capsys.readouterr().err.partition("start it again with:")[2].split()
        assert command[:2] == ["gantrain", "train"]
    assert train(stopped) == 6
    assert "before its first checkpoint" in capsys.readouterr().err
    assert main([*command[1:], "seed=1"]) == 4
    assert "seed: 0 → 1" in capsys.readouterr().err
    other = killed["data"] | {"fingerprint": "of other images"}
    (stopped / "summary.json").write_text(json.dumps(killed | {"data": other}))
    for _ in range(2):
        assert main(command[1:]) == 4
        assert "fingerprint" in capsys.readouterr().err
    (stopped / "summary.json").write_text(json.dumps(killed))
    assert main(command[1:]) == 0
    assert "started again" in capsys.readouterr().out
    assert_equal_runs(whole, stopped)


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "run")
    path, bundle, _ = checkpoints.load_newest(folder / "checkpoints")
    bundle["config"]["seed"] = 7
    checkpoints.save(path.parent, bundle, keep=9)
    before = (folder / ".hydra/config.yaml").read_bytes()
    assert main(["resume", str(folder), "train.images=1200"]) == 4
    assert "seed: 0 → 7" in capsys.readouterr().err
    assert (folder / ".hydra/config.yaml").read_bytes() == before


@pytest.mark.parametrize("spoil", ["lacks dataset", "nested"])
def test_a_config_that_no_run_has_is_refused(spoil, whole, tmp_path, capsys):
    path, bundle, _ = checkpoints.load_newest(whole / "checkpoints")
    nested = 1
    for _ in range(90):
        nested = {"a": nested}
    bundle["config"] = bundle["config"] | {"dataset": 1 if spoil == "lacks dataset" else nested}
    checkpoints.save(tmp_path / "checkpoints", bundle, keep=9)
    assert main(["resume", str(tmp_path)]) == 4
    assert path.name in (message := capsys.readouterr().err)
    assert ("no dataset" if spoil == "lacks dataset" else "nested more than") in message


BAD_VALUES = ["a: !!int ''", "a: !!bool x", "a: !!timestamp x", f"a: 1{':00' * 400}.5"]


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "dataset: 3", *BAD_VALUES])
def test_a_damaged_config_of_the_folder_is_made_anew(text, stopped, capsys):
    config = stopped / ".hydra/config.yaml"
    before = config.read_bytes()
    config.write_text(text)
    assert main(["resume", str(stopped)]) == 0
    assert "config.yaml is not the config of a run, and is passed over" in capsys.readouterr().out
    assert yaml.safe_load(config.read_text()).keys() == yaml.safe_load(before).keys()


def test_a_stray_file_with_a_high_number_counts_no_images(stopped, capsys):
    name = checkpoints.file_name(999_999_999_999)
    shutil.copy(checkpoints.list_files(stopped / "checkpoints")[0], stopped / "checkpoints" / name)
    assert main(["resume", str(stopped)]) == 0
    assert f"{name} has no checksum" in (said := capsys.readouterr().out)
    assert "trained again" not in said


# One run for each format that was ever released, never made anew: its last checkpoint, and samples of its generator.
FORMATS = sorted((Path(__file__).parent / "data").glob("format_*"))


@pytest.mark.parametrize("kept", FORMATS, ids=lambda path: path.name)
def test_checkpoints_of_every_format_still_load(kept, tmp_path, capsys):
    generator = gantrain.load(kept).generator()
    made = torch.load(kept / "samples.pt", weights_only=True)
    assert_close_to_largest(generator(made["latents"]), made["samples"], rtol=1e-4)
    run = shutil.copytree(kept, tmp_path / "run")
    assert main(["resume", str(run), f"train.images={generator.images + 500}"]) == 0, capsys.readouterr().err
    assert gantrain.load(run).images == generator.images + 500


def test_the_format_that_is_written_is_kept_for_later():
    assert f"format_{checkpoints.FORMAT}" in {path.name for path in FORMATS}


# ---------------------------------------------------------------------------------------------------------------------
# Weights of samples, whose default may change


def stored_weights(run: Path) -> dict[str, object]:
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    return config.get("gen_weights", {})


@pytest.fixture(scope="module")
def weighted(tmp_path_factory) -> Path:
    """A run whose generator has the default weights; not to be written into."""
    folder = tmp_path_factory.mktemp("runs") / "weighted"
    assert train(folder, "train.images=100", "gen_div=kl") == 0
    return folder


def test_a_run_keeps_the_weights_that_were_the_default_when_it_began(weighted, tmp_path, monkeypatch):
    run = shutil.copytree(weighted, tmp_path / "run")
    assert stored_weights(run) == {"normalise": DEFAULT.normalise, "spread": DEFAULT.spread}
    monkeypatch.setattr("gantrain.objectives.weighting.DEFAULT", Weighting(normalise=True, spread=7.0))
    assert main(["resume", str(run), "train.images=200"]) == 0
    assert train(run, "resume=auto", "gen_div=kl", "train.images=300") == 0
    assert stored_weights(run) == {"normalise": DEFAULT.normalise, "spread": DEFAULT.spread}


def test_a_run_that_was_stored_without_such_keys_goes_on_with_plain_weights(tmp_path):
    run = tmp_path / "run"
    assert train(run, "train.images=100", "gen_div=kl", "gen_weights.normalise=false") == 0
    bundle = checkpoints.load_newest(run / "checkpoints")[1]
    del bundle["config"]["gen_weights"]
    checkpoints.save(run / "checkpoints", bundle, keep=3)
    assert main(["resume", str(run), "train.images=200"]) == 0
    assert stored_weights(run) == {}
    assert all("weights/beta" not in row for row in read_metrics(run / "metrics.jsonl"))


def test_other_weights_are_another_run(weighted, capsys):
    assert main(["resume", str(weighted), "gen_weights.spread=2", "train.images=1200"]) == 4
    assert "gen_weights.spread: 0.25 → 2" in capsys.readouterr().err
