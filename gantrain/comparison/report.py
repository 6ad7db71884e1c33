"""`report.html`: a comparison as one page that can be sent to somebody; its markup is in report.html.jinja.

The page is complete in itself: pictures are `data:` URIs and figures inline SVG. Its content security policy forbids
scripts and every request, and Jinja escapes every text, so that no name in a run folder can make the page do more than
be read.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gantrain.comparison import panels, plots, tables
from gantrain.comparison.comparison import Comparison
from gantrain.comparison.configurations import Configuration, error_metric, short_key
from gantrain.comparison.panels import Plot
from gantrain.comparison.runs import Run, command_lines, natural_key, provenance, read_picture
from gantrain.comparison.untrusted import clean_text
from gantrain.console import printable
from gantrain.errors import ConfigError, DataError, StorageError
from gantrain.evaluation.evaluation import REFERENCE
from gantrain.files import describe_os_error, write_file

if TYPE_CHECKING:
    from jinja2 import Environment

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MOST_COMMANDS = 12


def write_report(comparison: Comparison, out: Path) -> Path:
    """Write compare.csv, the figures and report.html into the folder `out`; return the path of the page.

    Raises:
        ConfigError: `out` is a file, or lies below one.
        StorageError: A file cannot be written.
    """
    existing = next(path for path in (out, *out.parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"out={out}: {existing} is a file; give a folder, which is made if it is missing")
    drawn = plots.build_plots(comparison)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / "compare.csv", tables.csv_text(comparison))
        for plot in drawn:
            panels.save_plot(plot, comparison, out)
        write_file(out / "report.html", render_page(comparison, drawn))
    except OSError as error:
        raise StorageError(f"out={out} cannot be written: {describe_os_error(error)}") from error
    return out / "report.html"


def render_page(comparison: Comparison, drawn: Sequence[Plot]) -> str:
    """Return the page with these figures."""
    from markupsafe import Markup

    svgs = {
        plot.name: [Markup(panels.inline_svg(panel, f"{plot.name}{i}")) for i, panel in enumerate(plot.panels)]
        for plot in drawn
    }
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            policy=POLICY,
            comparison=comparison,
            overview=_overview(comparison),
            commands=["gantrain train " + shlex.join(arguments) for arguments in command_lines(comparison.runs)],
            most_commands=MOST_COMMANDS,
            name=lambda configuration: panels.configuration_name(configuration, comparison),
            tables=list(tables.metric_tables(comparison)),
            reference=REFERENCE,
            samples=_sample_section(comparison),
            svgs=svgs,
            keyed={plot.name for plot in drawn if plot.keyed},
            looks=panels.configuration_looks(comparison),
            origins=list(_origins(comparison)),
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def remove_controls(value: Any) -> Any:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    def allow_breaks(name: str) -> Markup:
        """Allow a line break after each `/` and `_` of a name."""
        return Markup("<wbr>").join(re.split(r"(?<=[/_])", printable(name)))

    environment = Environment(
        loader=PackageLoader("gantrain.comparison", "."),
        autoescape=True,
        finalize=remove_controls,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"allow_breaks": allow_breaks, "short_key": short_key, "error_metric": error_metric}
    return environment


# ---------------------------------------------------------------------------------------------------------------------
# Parts of the page


def count(number: int, what: str) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _overview(comparison: Comparison) -> list[str]:
    data = dict.fromkeys(clean_text(run.fact("data", "label")) for run in comparison.runs)
    seeds = sorted({run.seed for run in comparison.runs}, key=natural_key)
    parts = [
        ", ".join(filter(None, data)),
        count(len(comparison.configurations), "configuration"),
        f"{count(len(comparison.runs), 'run')}, {sum(run.is_finished for run in comparison.runs)} finished",
        f"seeds {', '.join(seeds)}" if len(seeds) > 1 else f"seed {', '.join(seeds)}",
    ]
    return list(filter(None, parts))


class Grid(NamedTuple):
    """A picture of a run; `uri` is empty if it cannot be shown, and the caption says why."""

    heading: str
    caption: str
    uri: str


class Samples(NamedTuple):
    """Grids of one run of each configuration, and of the other runs."""

    made_by: str
    same_latents: bool
    has_points: bool  # points of a density are drawn with axes and a legend, which need more room than pixels
    grids: list[Grid]
    others: list[Grid]


def _sample_section(comparison: Comparison) -> Samples | None:
    """Collect the newest grids, if possible of one seed and so from the same latents."""
    names = {run.path: name for run in comparison.runs if (name := run.newest_grid())}
    seeds = Counter(run.seed for run in comparison.runs if run.is_finished and run.path in names)
    seed = max(sorted(seeds, key=natural_key), key=lambda each: seeds[each], default="")
    first = [run for each in comparison.configurations if (run := _choose_run(each, names, seed))]
    if not first:
        return None
    labels = {run.path: each.label for each in comparison.configurations for run in each.runs}
    real = {clean_text(run.fact("data", "label")): run for run in reversed(first)}

    def read_grids(runs: Iterable[Run]) -> list[Grid]:
        return [_read_grid(run, names[run.path], labels[run.path], _caption(run, names[run.path])) for run in runs]

    return Samples(
        made_by=", ".join(filter(None, dict.fromkeys(clean_text(run.fact("samples_from")) for run in first))),
        same_latents=len({(run.seed, *map(run.settings.get, ("latent.size", "latent.prior"))) for run in first}) == 1,
        has_points=any(run.fact("data", "training_images") is None for run in first),
        grids=[
            *(_read_grid(run, "samples/real.png", "data", label) for label, run in sorted(real.items())),
            *read_grids(first),
        ],
        others=read_grids(run for run in comparison.runs if run.path in names and run not in first),
    )


def _choose_run(configuration: Configuration, names: Mapping[Path, str], seed: str) -> Run | None:
    """The finished run of that seed, or else the first with a grid, finished ones first."""
    candidates = [run for run in (*configuration.finished, *configuration.runs) if run.path in names]
    return next((run for run in candidates if run.seed == seed and run.is_finished), next(iter(candidates), None))


def _caption(run: Run, name: str) -> str:
    clock = f"{int(name.removesuffix('.png')[-12:]):,} images, seed {run.seed}"
    return clock if run.is_finished else f"{clock}, {run.status}"


def _read_grid(run: Run, name: str, heading: str, caption: str) -> Grid:
    try:
        return Grid(heading, caption, f"data:image/png;base64,{base64.b64encode(read_picture(run, name)).decode()}")
    except DataError as error:
        return Grid(heading, f"{caption}: {error}", "")


def _origins(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield each fact that numbers depend on with its values, and which runs differ in it."""
    finished = [run for run in comparison.runs if run.is_finished]
    facts = {run.path: provenance(run) for run in finished or comparison.runs}
    for name in dict.fromkeys(name for each in facts.values() for name in each):
        paths: dict[str, set[Path]] = {}
        for path, each in facts.items():
            paths.setdefault(each.get(name, "not recorded"), set()).add(path)
        *few, most = sorted(paths, key=lambda value: len(paths[value]))
        texts = [f"{value} ({'; '.join(_name_runs(paths[value], comparison))})" for value in few]
        others = list(_name_runs(paths[most], comparison))
        rest = others[0] if len(others) == 1 else f"the other {count(len(paths[most]), 'run')}"
        yield name, "\n".join([*texts, f"{most} ({rest})" if few else most])


def _name_runs(paths: Collection[Path], comparison: Comparison) -> Iterator[str]:
    """Yield the configurations of runs, with their seeds unless all that count are among them."""
    for configuration in comparison.configurations:
        if seeds := [run.seed for run in configuration.drawn_runs if run.path in paths]:
            name = f"#{configuration.number}" if panels.is_numbered(comparison) else configuration.label
            yield name if len(seeds) == len(configuration.drawn_runs) else f"{name} seed {', '.join(seeds)}"
