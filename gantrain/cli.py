"""The command line: dispatch, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import tempfile
import traceback
from pathlib import Path

from gantrain.console import discard_output, one_line, open_closed_streams, replace_unencodable, say
from gantrain.errors import ConfigError, GantrainError, StorageError, UntypedCodeError, describe_choice
from gantrain.files import convert_system_error
from gantrain.runs.signals import Interrupted
from gantrain.version import VERSION

# Each subcommand: one module in gantrain/commands with its `HELP` and `run(arguments)`, and one line about it.
COMMANDS = {
    "train": "train a GAN, or with -m a sweep of them",
    "resume": "continue a run or a sweep where it stopped",
    "sample": "draw samples from a trained generator",
    "evaluate": "measure the quality and diversity of samples, or train the classifier for that",
    "compare": "compare runs: tables, figures and an HTML page",
    "divergences": "show formulas and properties of divergences",
    "verify": "test bounds, estimates and log-ratios on known densities",
    "architecture": "print the layers of networks with shapes and parameter counts",
    "fit": "fit one Gaussian to a mixture under each divergence, by quadrature",
}

OVERVIEW = """gantrain trains GANs whose discriminator and generator each target an f-divergence of your choice.

  gantrain COMMAND [key=value …]

{commands}

`gantrain COMMAND --help` shows a command's keys and examples. `gantrain train` trains on the embedded digits.
`gantrain --version` shows the version."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; the console script's entry point."""
    arguments = sys.argv[1:] if arguments is None else arguments
    open_closed_streams()
    replace_unencodable()
    if sys.platform == "win32":
        return refuse("gantrain runs on Linux and macOS; on Windows, run it in WSL", ConfigError.exit_code)
    os.environ["MPLBACKEND"] = "agg"  # of matplotlib: files only, whatever a notebook or a desktop has set
    try:
        dispatch(arguments)
    except UntypedCodeError as error:
        again = one_line(shlex.join(["gantrain", *arguments, error.argument]))
        return refuse(f"{error}:\n  {again}", error.exit_code)
    except (GantrainError, Interrupted) as error:
        return refuse(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        return refuse(str(error) or "stopped by an interrupt; nothing that was finished is lost", 130)
    except BrokenPipeError:
        discard_output()
    except Exception as error:
        remedy = "raise the limit (ulimit -v)" if isinstance(error, ImportError) else "ask for fewer images at once"
        if known := convert_system_error(error, "storage", remedy):
            return refuse(str(known), known.exit_code)
        return refuse(f"internal error: {type(error).__name__}: {error}\nthe traceback is in {log_traceback()}", 1)
    return 0


def dispatch(arguments: list[str]) -> None:
    """Run the command that the first argument names. Raises GantrainError."""
    if arguments[:1] in (["-sc"], ["--shell-completion"]):
        complete(arguments[1:])
        return
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print(OVERVIEW.format(commands="\n".join(f"  {name:{width}}  {line}" for name, line in COMMANDS.items())))
        return
    if arguments[0] in ("-V", "--version", "version"):
        print(f"gantrain {VERSION}")
        return
    name, rest = arguments[0], arguments[1:]
    if name == "classifier":
        keys = "train_classifier.epochs=…, .width and .seed, and classifier=FILE"
        raise ConfigError(f"gantrain classifier is now gantrain evaluate dataset=NAME, with {keys}")
    if "=" in name or name.startswith("-"):
        raise ConfigError(f"{name} is no command; did you mean gantrain train {shlex.join(arguments)}?")
    if name not in COMMANDS:
        raise ConfigError(describe_choice("command", name, COMMANDS))
    leave_missing_folder(rest)
    command = importlib.import_module(f"gantrain.commands.{name}")
    if "-h" in rest or "--help" in rest:
        print(command.HELP)
    else:
        command.run(rest)


def complete(arguments: list[str]) -> None:
    """Answer the shell: with the names of the commands, and for `train` with Hydra's completion of its keys.

    Hydra's script calls the bare program, with the typed line in COMP_LINE.
    """
    from gantrain.commands import train

    line = os.environ.get("COMP_LINE", "").partition(" ")[2].lstrip()
    name, blank, rest = line.partition(" ")
    if not any(argument.startswith("query=") for argument in arguments):
        train.print_completion_script(arguments)
    elif not blank:
        print(*(command for command in COMMANDS if command.startswith(name)))
    elif name == "train":
        print(*train.complete(rest))


def leave_missing_folder(arguments: list[str]) -> None:
    """Go to the root folder if the working directory was deleted and an absolute run_dir is given.

    Raises StorageError if it is not, because relative paths then lead nowhere.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        gone = f"the working directory {os.environ.get('PWD', '')} was deleted"
        if not any(text.startswith("run_dir=/") for text in arguments):
            raise StorageError(f"{gone}; change to another one, or give an absolute run_dir") from error
        say(f"{gone}; relative paths are taken from /")
        os.chdir("/")


def refuse(message: str, exit_code: int) -> int:
    """Print an error message to standard error, and return the exit code."""
    say(f"gantrain: {message}", error=True)
    return exit_code


def log_traceback() -> Path:
    """Write the traceback of the current exception to a temporary file, and return its path."""
    with tempfile.NamedTemporaryFile("w", prefix="gantrain-error-", suffix=".log", delete=False) as file:
        file.write(traceback.format_exc())
    return Path(file.name)


if __name__ == "__main__":
    sys.exit(main())
