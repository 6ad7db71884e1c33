"""`report.html`: a comparison as one page that can be sent to somebody; its markup is in report.html.jinja.

The page is complete in itself: pictures and figures are `data:` URIs. Its content security policy forbids scripts and
every request, and Jinja escapes every text, so that no name in a run folder can make the page do more than be read.
"""

from __future__ import annotations

import base64
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from gantrain.comparison import rows, tables
from gantrain.comparison.comparison import Comparison
from gantrain.comparison.configurations import error_metric
from gantrain.comparison.labels import short_key
from gantrain.comparison.plots import encode_plots
from gantrain.comparison.runs import Run, command_lines, natural_key, provenance, read_picture
from gantrain.comparison.statistics import LEVEL
from gantrain.comparison.untrusted import clean_text
from gantrain.console import printable
from gantrain.errors import ConfigError, DataError
from gantrain.evaluation.evaluation import REFERENCE
from gantrain.files import convert_write_errors, write_file, write_json

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(comparison: Comparison, out: Path) -> Path:
    """Write compare.csv, compare.json, the figures and report.html into the folder `out`; return the path of the page.

    Raises:
        ConfigError: `out` is a file, or lies below one.
        DrawingError: Matplotlib cannot be loaded.
        StorageError: A file cannot be written.
    """
    existing = next(path for path in (out, *out.parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"out={out}: {existing} is a file; give a folder, which is made if it is missing")
    figures = encode_plots(comparison)
    with convert_write_errors(f"out={out}"):
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / "compare.csv", rows.csv_text(comparison))
        tests = {"baseline": comparison.baseline.label, "level": LEVEL, "tests": rows.finding_rows(comparison)}
        write_json(out / "compare.json", tests)
        for name, files in figures.items():
            for kind, data in files.items():
                write_file(out / f"compare-{name}.{kind}", data)
        write_file(out / "report.html", render_page(comparison, figures))
    return out / "report.html"


def render_page(comparison: Comparison, figures: Mapping[str, Mapping[str, bytes]]) -> str:
    """Return the page with these figures, as of `encode_plots`."""
    environment = Environment(
        loader=PackageLoader("gantrain.comparison", "."),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short_key": short_key, "error_metric": error_metric}
    return environment.get_template("report.html.jinja").render(
        policy=POLICY,
        comparison=comparison,
        overview=_overview(comparison),
        commands=["gantrain train " + shlex.join(arguments) for arguments in command_lines(comparison.runs)],
        tables=list(tables.metric_tables(comparison)),
        tests={group: list(tables.finding_tables(comparison, group)) for group in comparison.columns},
        reference=REFERENCE,
        samples=_read_samples(comparison),
        figures={name: _data_uri(files["svg"], "svg+xml") for name, files in figures.items()},
        origins=list(_origins(comparison)),
    )


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _count(number: int, what: str) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _overview(comparison: Comparison) -> list[str]:
    data = dict.fromkeys(clean_text(run.fact("data", "label")) for run in comparison.runs)
    seeds = sorted({run.seed for run in comparison.runs}, key=natural_key)
    finished = sum(run.is_finished for run in comparison.runs)
    return [
        *filter(None, data),
        _count(len(comparison.configurations), "configuration"),
        f"{_count(len(comparison.runs), 'run')}, {finished} finished",
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}",
    ]


class Grid(NamedTuple):
    """A picture of a run; `uri` is empty if it cannot be shown, and the caption says why."""

    heading: str
    caption: str
    uri: str


def _read_samples(comparison: Comparison) -> list[tuple[str, list[Grid]]]:
    """Return the newest grids by seed, the seed of most finished runs first, which also shows the data."""
    grids: dict[str, list[Grid]] = {}
    finished: Counter[str] = Counter()
    data: dict[str, Grid] = {}
    for configuration in comparison.configurations:
        for run in configuration.runs:
            if name := run.newest_grid():
                clock = f"{int(name[-16:-4]):,} images"
                caption = clock if run.is_finished else f"{clock}, {run.status}"
                grids.setdefault(run.seed, []).append(_read_grid(run, name, configuration.name, caption))
                finished[run.seed] += run.is_finished
                if (label := clean_text(run.fact("data", "label"))) not in data:
                    data[label] = _read_grid(run, "samples/real.png", "data", label)
    seeds = sorted(grids, key=lambda seed: (-finished[seed], natural_key(seed)))
    for seed in seeds[:1]:
        grids[seed] = [*data.values(), *grids[seed]]
    return [(seed, grids[seed]) for seed in seeds]


def _read_grid(run: Run, name: str, heading: str, caption: str) -> Grid:
    try:
        return Grid(heading, caption, _data_uri(read_picture(run, name), "png"))
    except DataError as error:
        return Grid(heading, f"{caption}: {error}", "")


def _origins(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield each fact that numbers depend on with its values, and which runs differ in it."""
    finished = [run for run in comparison.runs if run.is_finished]
    facts = {run.path: provenance(run) for run in finished or comparison.runs}
    for name in dict.fromkeys(name for each in facts.values() for name in each):
        paths: dict[str, list[Path]] = {}
        for path, each in facts.items():
            paths.setdefault(each.get(name, "not recorded"), []).append(path)
        *few, most = sorted(paths, key=lambda value: len(paths[value]))
        lines = [f"{value} ({'; '.join(_name_runs(paths[value], comparison))})" for value in few]
        yield name, "\n".join([*lines, f"{most} (the other {_count(len(paths[most]), 'run')})" if few else most])


def _name_runs(paths: Collection[Path], comparison: Comparison) -> Iterator[str]:
    """Yield the configurations of runs, with their seeds unless all that count are among them."""
    for configuration in comparison.configurations:
        if seeds := [run.seed for run in configuration.drawn_runs if run.path in paths]:
            is_whole = len(seeds) == len(configuration.drawn_runs)
            yield configuration.name if is_whole else f"{configuration.name}, seed {', '.join(seeds)}"
