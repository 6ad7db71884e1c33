from __future__ import annotations

import io
import itertools
import json
import math
import re
import resource
import shutil
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from gantrain.console import copy_lines, show_progress
from gantrain.errors import DataError
from gantrain.evaluation import metrics
from gantrain.files import append_record
from gantrain.reporting.reporter import Reporter
from gantrain.reporting.tensorboard import CHARTS, TensorBoard, select_hyperparameters
from gantrain.runs.metrics_file import read_metrics

SCALARS = {
    "loss/discriminator": 1.32,
    "loss/generator": 0.71,
    "bound/gan": 0.08,
    "bound/kl": 0.2,
    "speed/images_per_second": 312.0,
}


def pipe() -> Console:
    return Console(file=io.StringIO(), width=40)


def terminal(width: int = 140) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm"})


def lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def open_reporter(folder, total_images=200, start_images=0, console=None, **arguments) -> Reporter:
    loggers = [partial(TensorBoard, folder, start_images, **arguments)]
    return Reporter(folder, total_images, start_images, console=console or pipe(), loggers=loggers)


def report_run(folder, clocks, start_images=0, **arguments) -> None:
    with open_reporter(folder, 200_000, start_images, **arguments) as reporter:
        for images in clocks:
            reporter.report(images, {**SCALARS, "loss/generator": images / 1000})


def events(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def event_files(folder) -> list:
    return sorted(folder.rglob("events.out.tfevents.*"))


def strict(line: str) -> dict:
    def refuse(token: str) -> float:
        raise AssertionError(f"{token} is not JSON")

    return json.loads(line, parse_constant=refuse)


# metrics.jsonl


def test_a_report_is_one_line_of_strict_json(tmp_path):
    with Reporter(tmp_path, 200, console=pipe()) as reporter:
        reporter.report(100, {"loss/discriminator": 0.1, "loss/generator": math.nan, "ratio/calibration_q": math.inf})
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1  # written at once, not at the end
        reporter.report(200, {"loss/discriminator": 1 / 3})
    rows = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = {"images": 100, "loss/discriminator": 0.1, "loss/generator": None, "ratio/calibration_q": None}
    assert rows == [first, {"images": 200, "loss/discriminator": 1 / 3}]
    assert read_metrics(tmp_path / "metrics.jsonl") == rows


@pytest.mark.parametrize("torn", ["", '{"images": 30000, "loss/gen', '{"images": 30000}', "\x00\x00"])
def test_an_interrupted_and_resumed_run_has_the_uninterrupted_metrics(tmp_path, torn):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    report_run(whole, range(10_000, 60_000, 10_000))
    report_run(cut, range(10_000, 40_000, 10_000))
    with (cut / "metrics.jsonl").open("a") as file:
        file.write(torn)
    report_run(cut, range(30_000, 60_000, 10_000), start_images=20_000)
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1}', '{"images": null}', "[" * 100_000])
def test_a_bad_line_is_named_unless_it_is_the_last_and_torn(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"images": 1}\n{"images": 3}\n' + line)
    assert [row["images"] for row in read_metrics(path)] == [1, 3]
    path.write_text('{"images": 1}\n' + line + '\n{"images": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        read_metrics(path)
    path.unlink()
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be read: No such file"):
        read_metrics(path)


# TensorBoard


def test_tensorboard_reads_back_all_that_was_reported(tmp_path):
    Image.new("RGB", (5, 7), (10, 20, 30)).save(tmp_path / "grid.png")
    hparams = {"lr": 1e-3, "disc_div": "gan"}
    with open_reporter(tmp_path, config_text="seed: 0\nname: [red]", hparams=hparams) as reporter:
        values = torch.tensor([0.0, 1.0, 2.0, math.nan])
        reporter.report(100, SCALARS, {"ratio/real": values, "ratio/empty": torch.tensor([math.nan])})
        reporter.add_picture(100, "grid", tmp_path / "grid.png")

    assert len(event_files(tmp_path)) == 1
    read = events(tmp_path)
    tags = read.Tags()
    assert set(tags["scalars"]) == set(SCALARS)
    for name, value in SCALARS.items():
        (event,) = read.Scalars(name)
        assert event.step == 100
        assert event.value == pytest.approx(value)
    assert tags["histograms"] == ["ratio/real"]
    assert read.Histograms("ratio/real")[0].histogram_value.num == 3
    grid = Image.open(io.BytesIO(read.Images("grid")[0].encoded_image_string))
    assert (grid.size, grid.getpixel((0, 0))) == ((5, 7), (10, 20, 30))
    text = read.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "```yaml\nseed: 0\nname: [red]\n```"


def test_hyperparameters_stand_beside_the_last_report_in_the_same_file(tmp_path):
    config = {"optimizer": {"lr": 1e-3, "betas": [0.5, 0.99]}, "path": None, "flip": True, "layers": [{"op": "conv"}]}
    report_run(tmp_path, [100, 200], hparams=select_hyperparameters(config))
    assert len(event_files(tmp_path)) == 1
    metadata = events(tmp_path).summary_metadata
    content = {
        tag: HParamsPluginData.FromString(metadata[f"_hparams_/{tag}"].plugin_data.content)
        for tag in ("session_start_info", "session_end_info")
    }
    told = content["session_start_info"].session_start_info.hparams
    assert told["optimizer.lr"].number_value == 1e-3
    assert told["optimizer.betas"].string_value == "[0.5, 0.99]"
    assert told["path"].string_value == "null"
    assert set(told) == {"optimizer.lr", "optimizer.betas", "path", "flip"}


def test_the_hyperparameters_page_has_the_columns_of_all_runs_and_those_that_differ_first(tmp_path):
    sweep = {"0-held_out-null": (None, {"bound/kl": 1.0}), "1-held_out-50": (50, {"bound/kl": 2.0, "bound/js": 3.0})}
    for name, (held_out, bounds) in sweep.items():
        (tmp_path / name).mkdir()
        hparams = select_hyperparameters({"lr": 0.5, "held_out": held_out})
        with open_reporter(tmp_path / name, 10, hparams=hparams) as reporter:
            reporter.report(10, {**SCALARS, **bounds})
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    assert set(multiplexer.Runs()) == set(sweep), "a run is named after its folder"
    request = RequestContext()
    page = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(tmp_path))))
    found = page.experiment_from_metadata(request, "", True, page.hparams_metadata(request, ""), [], hparams_limit=2)
    assert [(info.name, info.differs) for info in found.hparam_infos] == [("held_out", True), ("lr", False)]
    assert {info.name.tag for info in found.metric_infos} == {*SCALARS, "bound/kl", "bound/js"}


def test_curves_do_not_fold_back_after_a_resume(tmp_path):
    report_run(tmp_path, [10_000, 20_000, 30_000, 40_000], config_text="seed: 0")
    earlier = tmp_path / "events.out.tfevents.0000000001.host.1.0"
    event_files(tmp_path)[0].rename(earlier)
    earlier.write_bytes(earlier.read_bytes()[:-5])  # killed while it wrote
    report_run(tmp_path, [30_000, 40_000, 50_000], start_images=20_000, config_text="seed: 0")
    assert len(event_files(tmp_path)) == 2
    read = events(tmp_path)
    assert [event.step for event in read.Scalars("loss/generator")] == list(range(10_000, 60_000, 10_000))
    assert len(read.Tensors("config/text_summary")) == 1


def test_events_are_on_disk_when_the_report_returns(tmp_path):
    with open_reporter(tmp_path) as reporter:
        reporter.report(100, SCALARS)
        assert [event.step for event in events(tmp_path).Scalars("bound/gan")] == [100]


# Storage that fails


def test_a_folder_that_vanishes_is_told_once_for_each_file_and_costs_nothing(tmp_path, capfd):
    folder = tmp_path / "run"
    folder.mkdir()
    console = pipe()
    with open_reporter(folder, console=console, hparams={"lr": 1.0}) as reporter:
        shutil.rmtree(folder)
        reporter.report(100, SCALARS)
        reporter.report(150, SCALARS)
        with reporter.tolerate_failures():
            (folder / "picture.png").write_bytes(b"")
        folder.mkdir()
        reporter.report(200, SCALARS)
    told = [line for line in lines(console) if "the run goes on" in line]
    assert [line.partition(",")[0] for line in told] == ["cannot write logs or pictures", "cannot write to TensorBoard"]
    assert [row["images"] for row in read_metrics(folder / "metrics.jsonl")] == [200]
    assert "Traceback" not in capfd.readouterr().err


def test_a_logger_that_cannot_be_opened_costs_nothing(tmp_path, capfd):
    console = pipe()
    missing = partial(TensorBoard, tmp_path / "file" / "run")
    (tmp_path / "file").touch()
    with Reporter(tmp_path, 200, console=console, loggers=[missing]) as reporter:
        reporter.report(100, SCALARS)
    assert "the run goes on without them" in lines(console)[0]
    assert "Traceback" not in capfd.readouterr().err


def test_only_failures_of_logs_cost_no_run(tmp_path):
    reporter = Reporter(tmp_path, 200, console=pipe())
    with reporter.tolerate_failures():
        raise DataError("metrics.jsonl, line 3 is not a report")
    assert "the run goes on without them: metrics.jsonl, line 3" in lines(reporter.console)[-1]
    with pytest.raises(ZeroDivisionError), reporter.tolerate_failures():
        raise ZeroDivisionError


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def test_a_full_disk_never_leaves_half_a_record(tmp_path):
    path = tmp_path / "log"
    script = f"""
from pathlib import Path
from gantrain.files import append_record
append_record(Path({str(path)!r}), b"a" * 60)
try:
    append_record(Path({str(path)!r}), b"b" * 60)
except OSError as error:
    print(error.strerror)
append_record(Path({str(path)!r}), b"c" * 40)
"""
    done = subprocess.run([sys.executable, "-c", script], preexec_fn=limit_file_size, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "File too large\n", "")
    assert path.read_bytes() == b"a" * 60 + b"c" * 40


def test_links_are_not_written_through(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "metrics.jsonl").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        append_record(tmp_path / "metrics.jsonl", b"x")
    report_run(tmp_path, [100])
    report_run(tmp_path, [200], start_images=100)
    assert target.read_bytes() == b"precious"


# The screen


def test_a_pipe_gets_plain_lines(tmp_path):
    console = pipe()
    with Reporter(tmp_path, 200_000, console=console, bound="bound/gan") as reporter:
        for images in range(0, 10_000, 100):
            reporter.advance(images)
        reporter.report(10_000, SCALARS)
        reporter.note("checkpoint images_000000010000.pt")
        reporter.report(20_000, {"loss/discriminator": math.nan})
    assert lines(console) == [
        "images 10,000/200,000  312 images/s  left 0:10:09  loss D 1.32 G 0.71  bound 0.08",
        "checkpoint images_000000010000.pt",
        "images 20,000/200,000  loss D nan G nan",
    ]


@pytest.mark.parametrize(("error", "shown"), [(0.0123, "bound 0.08 ± 0.01"), (math.inf, "bound 0.08 (heavy tail)")])
def test_a_bound_is_shown_with_its_error_unless_that_is_infinite(tmp_path, error, shown):
    console = pipe()
    with Reporter(tmp_path, 200_000, console=console, bound="bound/gan") as reporter:
        reporter.report(10_000, {**SCALARS, "bound/gan_error": error})
    assert lines(console)[0].endswith(f"G 0.71  {shown}")


@pytest.mark.parametrize(("every", "shown"), [(400, [400, *range(10_000, 200_001, 10_000)]), (50_000, None)])
def test_plain_lines_are_few_however_many_reports_there_are(tmp_path, every, shown):
    """The first report, one of each twentieth of the run, the last one."""
    console, clocks = pipe(), range(every, 200_001, every)
    with Reporter(tmp_path, 200_000, console=console) as reporter:
        for images in clocks:
            reporter.report(images, {"loss/discriminator": 1.0})
    assert [line.split("/")[0] for line in lines(console)] == [f"images {images:,}" for images in shown or clocks]
    assert [row["images"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [*clocks]


def test_a_slow_run_tells_every_minute_how_far_it_is(tmp_path, monkeypatch):
    seconds = itertools.count(1000.0, 25.0)  # from one report to the next
    monkeypatch.setattr("gantrain.reporting.reporter.time.monotonic", lambda: next(seconds))
    console = pipe()
    with Reporter(tmp_path, 10**9, console=console) as reporter:
        for images in range(100, 1100, 100):
            reporter.report(images, {})
    assert [line.split("/")[0] for line in lines(console)] == [f"images {images:,}" for images in (100, 400, 700, 1000)]


def test_a_terminal_gets_one_line_that_moves(tmp_path):
    console = terminal()
    with Reporter(tmp_path, 200_000, console=console, bound="bound/kl") as reporter:
        reporter.report(20_000, SCALARS)
        reporter.advance(30_000)
    shown = console.file.getvalue()
    assert shown.count("images 30,000/200,000") > 0  # where it ended, though the last redraw was too recent
    assert "images 20,000/200,000  312 images/s  left 0:09:37" in shown
    assert "bound 0.2" in shown
    assert shown.index("\x1b[?25l") < shown.index("\x1b[?25h")  # the cursor is hidden, then given back


@pytest.mark.parametrize("width", [45, 80])
def test_a_narrow_terminal_gets_the_whole_line_folded(tmp_path, width):
    console = terminal(width)
    with Reporter(tmp_path, 200_000, console=console, bound="bound/gan") as reporter:
        reporter.report(20_000, SCALARS)
    words = console.file.getvalue().split()
    assert {"images", "20,000/200,000", "312", "0:09:37", "1.32", "0.71", "bound", "0.08"} <= set(words)


@pytest.mark.parametrize(("make_console", "every"), [(pipe, 60), (terminal, 0.25)])
def test_long_work_between_iterations_is_told_in_shares(tmp_path, monkeypatch, make_console, every):
    clock = [0.0]
    monkeypatch.setattr("gantrain.reporting.reporter.time.monotonic", lambda: clock[0])
    console = make_console()
    with Reporter(tmp_path, 10**6, console=console) as reporter:
        with reporter.show_progress("the classifier looks at 40 images") as told:
            for step in range(1, 41):
                clock[0] += every / 8  # so every eighth step is told
                told(step, 40)
        shares = re.findall(r"looks at 40 images: (\d+)%", console.file.getvalue())
        reporter.report(10_000, SCALARS)
    assert list(dict.fromkeys(shares)) == ["20", "40", "60", "80", "100"]
    assert "10,000/1,000,000" in console.file.getvalue()[console.file.getvalue().rindex("100%") :]


def test_progress_is_throttled(tmp_path):
    console = terminal()
    with Reporter(tmp_path, 10**6, console=console) as reporter:
        start = time.monotonic()
        for images in range(20_000):
            reporter.advance(images)
        seconds = time.monotonic() - start
        redraws = console.file.getvalue().count("/1,000,000")
    assert 1 <= redraws <= 4 * seconds + 2


@pytest.mark.parametrize("make_console", [pipe, terminal])
def test_text_is_neither_markup_nor_a_terminal_command(tmp_path, make_console):
    console = make_console()
    with Reporter(tmp_path, 200, console=console) as reporter:
        reporter.note("[red]loud[/red] \x1b]0;title\x07 \r gone")
        reporter.note("[/bold]\x1b[2J.pt")
        reporter.report(100, SCALARS)
    shown = console.file.getvalue()
    assert "[red]loud[/red]" in shown
    assert "\x1b]0;" not in shown
    assert "\x1b[2J" not in shown


def test_a_log_holds_the_same_plain_lines_whether_a_terminal_or_a_pipe_shows_them(tmp_path):
    copies = {}
    for make_console in (terminal, pipe):
        copied, console = copies.setdefault(make_console, []), make_console()
        (folder := tmp_path / make_console.__name__).mkdir()
        with copy_lines(copied.append), Reporter(folder, 200, console=console) as reporter:
            reporter.report(100, SCALARS)
            reporter.note("checkpoint \x1b[2J.pt")
            reporter.advance(150)
            reporter.report(200, SCALARS)
        reporter.note("nobody listens")
    assert copies[terminal] == copies[pipe] == lines(console)[:-1]
    assert copies[pipe][0].startswith("images 100/200")
    assert copies[pipe][1:2] == ["checkpoint \ufffd[2J.pt"]
    assert len(copies[pipe]) == 3


BOUNDS = ["bound/js", "recalibrated_bound/js", "estimate/js", "training_bound/js", "supremum/js"]
BOUNDS += [f"{name}_error" for name in BOUNDS[:4]] + ["shifted_bound/kl"]


def test_all_bounds_are_one_chart_with_their_suprema(tmp_path):
    from tensorboard.plugins.custom_scalar import layout_pb2

    with open_reporter(tmp_path, 100, config_text="a: 1", suprema={"js": 1.386}) as reporter:
        for images in (50, 100):
            reporter.report(images, {"bound/js": 0.2})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("supremum/js")] == [
        (50, 1.386),
        (100, 1.386),
    ]
    assert "supremum/js" not in read_metrics(tmp_path / "metrics.jsonl")[-1]
    (tensor,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0])
    tags = [list(chart.multiline.tag) for category in layout.category for chart in category.chart]
    charts = [[name for name in BOUNDS if any(re.match(tag, name) for tag in each)] for each in tags]
    assert [each for each in charts if each] == [
        ["bound/js", "training_bound/js", "supremum/js"],
        BOUNDS[1:2],
        BOUNDS[2:3],
    ]


@pytest.mark.parametrize("group", ["quality", "diversity"])
def test_charts_of_samples_show_every_number_but_those_of_another_scale(group):
    patterns = [pattern for chosen in CHARTS[group].values() for pattern in chosen]
    tables = (metrics.IMAGES, metrics.POINTS, metrics.STACKS)
    every = [name for table in tables for metric in table.values() for name in metric.names("classifier")]
    every = [name for name in dict.fromkeys(every) if name.startswith(group)]
    shown = [name for name in every if any(re.match(pattern, name) for pattern in patterns)]
    hidden = {"quality/kid_classifier_error", "diversity/support_size"}
    assert shown == [name for name in every if name not in hidden]


def test_numbers_of_samples_are_a_row_of_their_own(tmp_path):
    with open_reporter(tmp_path, 300, hparams={"lr": 1.0}) as reporter:
        reporter.report(100, SCALARS)
        reporter.record(200, {"quality/precision": 0.5})
        assert reporter.latest == {**SCALARS, "quality/precision": 0.5}
        reporter.report(300, {"loss/discriminator": 1.0, "quality/precision": 0.75})
    assert len(lines(reporter.console)) == 2
    assert read_metrics(tmp_path / "metrics.jsonl")[1] == {"images": 200, "quality/precision": 0.5}
    precision = events(tmp_path).Scalars("quality/precision")
    assert [(event.step, event.value) for event in precision] == [(200, 0.5), (300, 0.75)]


def test_log_ratios_of_any_size_have_a_histogram(tmp_path):
    with open_reporter(tmp_path, 100) as reporter:
        reporter.report(100, SCALARS, {"high": torch.full((4,), 3e38), "low": torch.full((4,), -3e38)})
    assert events(tmp_path).Tags()["histograms"] == ["high", "low"]


def test_a_resumed_run_knows_its_last_report(tmp_path):
    report_run(tmp_path, [1000, 2000, 3000])
    with Reporter(tmp_path, 200_000, 2000, console=pipe()) as reporter:
        assert reporter.latest == {**SCALARS, "loss/generator": 2.0}


def test_the_forecast_comes_once_after_ten_seconds_and_a_line_every_minute(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("gantrain.reporting.reporter.time.monotonic", lambda: clock[0])
    console = pipe()
    with Reporter(
        tmp_path, 100_000, console=console, forecast=lambda images, rate: f"{images}: {rate:g}/s"
    ) as reporter:
        for second in range(0, 131):  # the first iteration takes a second more, in which something is compiled
            clock[0] = 1.0 + second
            reporter.advance(20 * (second + 1))
    assert lines(console) == [
        "220: 20/s",
        "images 1,200/100,000  20 images/s  left 1:22:20",
        "images 2,400/100,000  20 images/s  left 1:21:20",
    ]


@pytest.mark.parametrize("jump", [500.0, 0.0, -500.0])
def test_a_clock_that_jumps_costs_no_line(jump, tmp_path, monkeypatch):
    """The clock jumps to where the first step was, after it or before it, between any two readings of it."""
    for jumps_after in range(2, 40):
        readings = itertools.chain([100.0] * 2, [1000.0] * jumps_after, itertools.repeat(100.0 + jump))
        monkeypatch.setattr("gantrain.reporting.reporter.time.monotonic", lambda readings=readings: next(readings))
        console = pipe()
        with Reporter(tmp_path, 1000, console=console) as reporter:
            for images in range(10, 100, 10):
                reporter.advance(images)
        assert lines(console)


def test_the_time_left_counts_from_the_first_step(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("gantrain.console.time.monotonic", lambda: clock[0])
    with show_progress("reading images") as update:
        for done in range(1, 6002):
            clock[0] = 100.0 + done / 50  # 100 seconds pass before the first
            update(done, 60_000)
    assert capsys.readouterr().out.splitlines() == [
        "reading images: 0%, about 20 min left",
        "reading images: 5%, about 19 min left",
    ]
