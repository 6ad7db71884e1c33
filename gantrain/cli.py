"""The command line: dispatch, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import tempfile
import traceback
from pathlib import Path

from gantrain.console import discard_output, say
from gantrain.errors import (
    ConfigError,
    GantrainError,
    MemoryExhaustedError,
    StorageError,
    describe_choice,
    is_out_of_memory,
)
from gantrain.files import describe_os_error
from gantrain.runs.signals import Interrupted

# Each subcommand: one module in gantrain/commands with `help_text()` and `run(arguments)`, and one line about it.
COMMANDS = {
    "train": "train a GAN, or with -m a sweep of them",
    "resume": "go on with a run where it stopped",
    "sample": "draw samples from a trained generator",
    "evaluate": "measure the quality and diversity of samples, or train the classifier for it",
    "compare": "lay runs side by side: a table, figures and one page",
    "divergences": "tell what each divergence is, in tables, a page or figures",
    "verify": "check bounds, estimates and log-ratio against densities that are known",
    "architecture": "print a network's table with shapes and parameter counts",
    "fit": "fit one Gaussian to a mixture under each divergence, exactly",
}

OVERVIEW = """gantrain trains GANs whose discriminator and generator each target a divergence of your choice.

  gantrain COMMAND [key=value …]

{commands}

`gantrain COMMAND --help` shows a command's keys and examples. `gantrain train` trains on the embedded digits."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; the console script's entry point."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        dispatch(arguments)
    except (GantrainError, Interrupted) as error:
        return refuse(str(error), error.exit_code)
    except KeyboardInterrupt:
        return refuse("stopped at once, by a second interrupt or before training began", 130)
    except BrokenPipeError:
        discard_output()
    except OSError as error:
        return refuse(f"{error.filename or 'storage'}: {describe_os_error(error)}", StorageError.exit_code)
    except Exception as error:
        if is_out_of_memory(error):
            said = str(error).partition("\n")[0]
            return refuse(f"out of memory: {said}\nask for fewer images at once", MemoryExhaustedError.exit_code)
        return refuse(f"internal error: {type(error).__name__}: {error}\nthe traceback is in {log_traceback()}", 1)
    return 0


def dispatch(arguments: list[str]) -> None:
    """Find the command and run it."""
    if arguments[:1] in (["-sc"], ["--shell-completion"]):
        return complete(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(OVERVIEW.format(commands="\n".join(f"  {name:{width}}  {line}" for name, line in COMMANDS.items())))
        return None
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"gantrain {version('gantrain')}")
        return None
    name, rest = arguments[0], arguments[1:]
    if "=" in name or (name.startswith("-") and rest):
        given = next((text for text in rest if text in COMMANDS), "train")
        others = shlex.join(text for text in arguments if text != given)
        raise ConfigError(f"{name} is no command; did you mean gantrain {given} {others}?")
    if name == "classifier":
        raise ConfigError(f"gantrain classifier is now a part of gantrain evaluate; type\n  {as_evaluate(rest)}")
    if name not in COMMANDS:
        raise ConfigError(describe_choice("command", name, COMMANDS) + "\n  `gantrain --help` describes them")
    command = importlib.import_module(f"gantrain.commands.{name}")
    if "-h" in rest or "--help" in rest:
        print(command.help_text())
        return None
    return command.run(rest)


def as_evaluate(arguments: list[str]) -> str:
    """Return the command line of `gantrain evaluate` for the arguments of the former `gantrain classifier`."""
    keys = {key: f"train_classifier.{key}" for key in ("epochs", "width", "seed")} | {"out": "classifier"}
    pairs = [text.partition("=") for text in arguments if "=" in text] or [("dataset", "=", "NAME")]
    return shlex.join(["gantrain", "evaluate", *(keys.get(key, key) + "=" + value for key, _, value in pairs)])


def complete(arguments: list[str]) -> None:
    """Answer the shell: with the names of the commands, and for `train` with Hydra's completion of its keys.

    Hydra's script calls the bare program, with the typed line in COMP_LINE.
    """
    _, _, line = os.environ.get("COMP_LINE", "").partition(" ")
    name, blank, rest = line.lstrip().partition(" ")
    asked = arguments[1:2] and arguments[1].startswith("query=")
    if asked and not blank:
        return print(" ".join(command for command in COMMANDS if command.startswith(name)))
    if asked and name != "train":
        return None
    from gantrain.commands import train

    return print(" ".join(train.complete(rest))) if asked else train.run_hydra(arguments)


def refuse(message: str, exit_code: int) -> int:
    """Say why, on the error stream."""
    say(f"gantrain: {message}", error=True)
    return exit_code


def log_traceback() -> Path:
    """Write the current exception's traceback to a file of its own."""
    with tempfile.NamedTemporaryFile("w", prefix="gantrain-error-", suffix=".log", delete=False) as file:
        file.write(traceback.format_exc())
    return Path(file.name)


if __name__ == "__main__":
    sys.exit(main())
