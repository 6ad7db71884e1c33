"""`gantrain sample`: draw samples from a trained generator; needs neither the dataset nor a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gantrain import plotting
from gantrain.config import overrides
from gantrain.config.schema import CodeOptions, number
from gantrain.console import say
from gantrain.devices import choose_device
from gantrain.errors import CheckpointError, ConfigError
from gantrain.files import convert_write_errors, expand_home, replace_file
from gantrain.launch.resume import refuse_sweep
from gantrain.reporting import pictures
from gantrain.runs import checkpoints
from gantrain.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

HELP = """Draw samples from a trained generator.

  gantrain sample RUN|CHECKPOINT [count=64] [seed=0] [out=DIR|FILE.npz] [device=auto]
                  [ema_statistics=copied|standing] [architecture.object=package:function]

Examples
  gantrain sample runs/digits/gan-kl/2026-11-22_10-00-00-s0 count=64 seed=1 out=samples
  gantrain sample RUN/checkpoints/images_000000050000.pt
  gantrain sample RUN count=50000 out=samples.npz

Images are written as 00000.png … and grid.png; points as samples.npy, and scatter.png in one or two dimensions. The
averaged generator is used if the run has one, with batch norm in evaluation mode; ema_statistics replaces the run's own
choice of its statistics. out is RUN/samples/seed<seed> by default. An out that ends in .npz is a single file with the
samples as arr_0: images uint8 [N, H, W, C], points float32 [N, d]."""

GRID_IMAGES = 256
ARRAY = ".npz"  # suffix of an `out` that is one file
OTHER_FILES = (".npy", ".png", ".jpg", ".zip", ".csv", ".pt")  # which would be folders


@dataclass
class Options(CodeOptions):
    """Options of `gantrain sample`."""

    count: int = number(64, at_least=1, at_most=10_000_000)
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    out: str | None = None
    device: str = "auto"


def run(arguments: list[str]) -> None:
    """Write samples from the run or checkpoint that the first argument names. Raises GantrainError."""
    name, typed = overrides.split_source(arguments, Options)
    if name is None:
        raise ConfigError("sample needs a run folder or a checkpoint: gantrain sample RUN [count=64 …]")
    source, options = expand_home(name), overrides.parse_into(Options, typed)

    from gantrain.training.generator import restore_generator

    refuse_sweep(source, "sample")
    folder = RunFolder.containing(source)
    out = expand_home(options.out) if options.out else folder.samples / f"seed{options.seed}"
    if options.out is None:
        folder.refuse_links()
    if out.suffix in OTHER_FILES and not out.is_dir():
        raise ConfigError(f"out={out}: samples become the files of a folder, or one file, out={out.with_suffix(ARRAY)}")
    if out.suffix == ARRAY and out.exists():
        raise ConfigError(f"out={out} exists; delete it, or give another out=FILE{ARRAY}")
    check_older_samples(out, options.count)
    if not source.exists():
        raise CheckpointError(f"{source} does not exist; give a run folder or a checkpoint")
    found, code = checkpoints.load_run(source), options.architecture.object
    generator = restore_generator(*found, object=code, ema_statistics=options.ema_statistics)
    generator.to(choose_device(options.device))
    for problem in generator.passed_over:
        say(f"passed over: {problem}")
    samples = generator.sample(options.count, options.seed)
    plotting.check_finite(samples, f"values in the samples of {source}")
    with convert_write_errors(f"out={out}"):
        (write_array if out.suffix == ARRAY else write_samples)(samples, out)
    say(f"{len(samples):,} samples of the {generator.source}, at {generator.images:,} images, in {out}")


def check_older_samples(out: Path, count: int) -> None:
    """Raise ConfigError if `out` has images of older samples that `count` new ones would not replace."""
    if older := sorted(path for path in out.glob("[0-9]*.png") if path.stem.isdecimal() and int(path.stem) >= count):
        raise ConfigError(
            f"{out} holds older samples, {older[0].name} to {older[-1].name}, that {count:,} new ones do not replace: "
            "delete them, or give another out=DIR"
        )


def write_array(samples: Tensor, out: Path) -> None:
    """Write samples as `arr_0` of an .npz file, which evaluators read: uint8 [N, H, W, C] or float32 [N, d]."""
    import numpy as np

    from gantrain.evaluation.samples import to_uint8

    array = to_uint8(samples).permute(0, 2, 3, 1) if samples.dim() == 4 else samples
    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(out) as file:
        np.savez(file, array.contiguous().numpy())


def write_samples(samples: Tensor, out: Path) -> None:
    """Write images as numbered PNGs and a grid, points as an array and a scatter plot."""
    import numpy as np

    out.mkdir(parents=True, exist_ok=True)
    if samples.dim() == 4:
        plotting.save_images(samples, out)
        plotting.save_grid(samples[:GRID_IMAGES], out / "grid.png")
    else:
        np.save(out / "samples.npy", samples.numpy())
        if samples.shape[1] <= 2:
            pictures.save_scatter(samples, out / "scatter.png")
