"""The order of imports, read from the source; which modules import without torch; which calls are forbidden."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import gantrain
from gantrain.cli import COMMANDS
from gantrain.data import DATASETS
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import GENERATOR_OBJECTIVES

PACKAGE = Path(gantrain.__file__).parent

# Packages from the lowest to the highest; a module imports from lower packages and from its own.
SMALL = {
    "errors",
    "files",
    "console",
    "seeding",
    "precision",
    "devices",
    "plotting",
    "ranges",
    "schedules",
    "distributed",
    "collectives",
    "failures",
    "inference",
    "version",
}
RANKS = [
    SMALL,
    {"objectives", "regularizers", "networks", "data", "runs", "augmentation"},
    {"theory"},
    {"evaluation", "reporting"},
    {"training", "comparison"},
    {"config"},
    {"launch"},
    {"commands"},
    {"cli", "api"},
    {"gantrain", "__main__"},  # `gantrain` itself offers the public API
]
KNOWS_HYDRA = {"config", "launch", "commands"}

# Everything else is importable at once: help, completion and configuration errors never wait for torch.
NEEDS_TORCH = {
    "gantrain.networks.fast_layers",
    "gantrain.networks.layers",
    "gantrain.networks.spectral_norm",
    "gantrain.networks.builder",
    "gantrain.networks.summary",
    "gantrain.networks.shared_batch",
    "gantrain.collectives",
    "gantrain.evaluation.classifier",
    "gantrain.evaluation.classifier_training",
    "gantrain.training.acceleration",
    "gantrain.training.iteration",
    "gantrain.training.step",
    "gantrain.objectives.slopes",
    "gantrain.augmentation.transforms",
    "gantrain.precision",
    *(f"gantrain.evaluation.{name}" for name in ("classes", "distances", "formulas", "inception", "samples")),
    "gantrain.theory.verification_plots",
    "gantrain.training.state",
    "gantrain.training.losses",
    "gantrain.training.generator",
    "gantrain.training.loop",
    "gantrain.training.outputs",
}
SLOW = ["torch", "torchvision", "matplotlib", "scipy", "tensorboard"]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def syntax(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[str]:
    """Every module that a module imports, at its top or inside a function; also for type hints alone."""
    for node in ast.walk(syntax(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called, such as `torch.load`."""
    return ((ast.unparse(node.func), node) for node in ast.walk(syntax(module)) if isinstance(node, ast.Call))


def package(module: str) -> str:
    return module.split(".")[:2][-1]


def rank(module: str) -> int:
    return next((level for level, names in enumerate(RANKS) if package(module) in names), len(RANKS))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_packages_and_its_own(module):
    ours = {name for name in imports(module) if name.split(".")[0] == "gantrain" and package(name) != package(module)}
    upward = {name for name in ours if rank(name) > rank(module) or rank(name) == rank(module) > 0}
    assert not upward, f"{module} (rank {rank(module)}) imports {upward}"


def test_every_package_has_one_rank():
    packages = {package(module) for module in MODULES if "." in module}
    homes = {name: [level for level, names in enumerate(RANKS) if name in names] for name in packages}
    assert not {name: levels for name, levels in homes.items() if len(levels) != 1}, "name its rank in RANKS"


@pytest.mark.parametrize("module", [module for module in MODULES if package(module) not in KNOWS_HYDRA])
def test_only_config_launch_and_commands_know_hydra(module):
    assert not {name.split(".")[0] for name in imports(module)} & {"hydra", "omegaconf"}


@pytest.mark.parametrize(
    "module", [module for module in MODULES if package(module) not in {*KNOWS_HYDRA, "cli", "api"}]
)
def test_a_choice_is_compared_by_name_only_where_it_is_defined(module):
    choices = {"objectives.divergences": CATALOGUE, "objectives.objective": GENERATOR_OBJECTIVES, "data": DATASETS}
    foreign = {name for home, names in choices.items() if module != f"gantrain.{home}" for name in names}
    for node in ast.walk(syntax(module)):
        if isinstance(node, ast.Compare | ast.MatchValue):
            strings = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            assert not strings & foreign, f"{module} line {node.lineno}: {ast.unparse(node)}"


def group(module: str) -> str:
    """The package of a module; the small modules, which are of one rank, are one group."""
    return "the small modules" if package(module) in SMALL else package(module)


def find_circle(name: str) -> set[str]:
    """Return the modules of a group that import each other, with those that need them; none if there is no circle."""
    inside = {module for module in MODULES if group(module) == name}
    needed = {module: set(imports(module)) & inside - {module} for module in inside}
    while free := [module for module, others in needed.items() if not others & needed.keys()]:
        for module in free:
            del needed[module]
    return set(needed)


@pytest.mark.parametrize("name", sorted({group(module) for module in MODULES}))
def test_no_group_has_a_circle_of_imports_inside(name):
    circle = find_circle(name)
    assert not circle, f"these modules import each other: {', '.join(sorted(circle))}"


def test_a_circle_among_the_small_modules_through_a_function_is_found(tmp_path, monkeypatch):
    planted = {
        "gantrain.first": "from gantrain.second import name",
        "gantrain.second": "def call():\n    from gantrain import first\n    return first.name",
    }
    monkeypatch.setattr(sys.modules[__name__], "SMALL", SMALL | {"first", "second"})
    for module, source in planted.items():
        path = tmp_path / f"{module}.py"
        path.write_text(source)
        monkeypatch.setitem(MODULES, module, path)
    assert find_circle("the small modules") == set(planted)


def functions(module: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function and method of a module with its qualified name."""
    for node in ast.walk(syntax(module)):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                inner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                yield f"{module.removeprefix('gantrain.')}.{inner}{child.name}", child


def count_lines(function: ast.FunctionDef) -> int:
    """The lines of a function without its docstring."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_small(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 300
    for name, function in functions(module):
        assert count_lines(function) <= 40, name
        arguments = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
        assert len([argument for argument in arguments if argument not in ("self", "cls")]) <= 8, name


def test_packages_stay_small():
    sizes = Counter(package(module) for module in MODULES if module.count(".") > 1)
    assert not {name: size for name, size in sizes.items() if size > 10}


def test_no_module_is_a_drawer_for_the_rest():
    assert not {path.stem for path in MODULES.values()} & {"utils", "util", "helpers", "common", "misc"}


def python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter; returns what it printed."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_modules_import_without_torch():
    code = f"""
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    for slow in {SLOW}:
        if slow in sys.modules:
            sys.exit(print(name, "imports", slow))
"""
    assert python(code, *(module for module in MODULES if module not in NEEDS_TORCH)) == ""


def test_the_modules_that_need_torch_exist():
    assert set(MODULES) >= NEEDS_TORCH


@pytest.mark.parametrize(
    "line", [*(f"{command} --help" for command in COMMANDS), "train gen_div=nonsense", "train --cfg job", "--version"]
)
def test_help_and_configuration_errors_come_without_torch(line, tmp_path):
    code = f"""
import contextlib, io, os, sys
from gantrain.cli import main
os.chdir({str(tmp_path)!r})
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    main(sys.argv[1:])
print(*({{*{SLOW}}} & {{*sys.modules}}))
"""
    assert python(code, *line.split()).strip() == ""
    assert not list(tmp_path.iterdir())


def test_every_torch_load_says_weights_only():
    loads = [(module, call) for module in MODULES for name, call in calls(module) if name == "torch.load"]
    assert loads
    for module, call in loads:
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("weights_only") == "True", f"{module} line {call.lineno}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_is_read_can_run_code(module):
    for name, call in calls(module):
        where = f"{module} line {call.lineno}: {name}"
        assert name not in {"eval", "exec", "compile", "__import__", "yaml.load", "os.system"}, where
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert arguments.get("allow_pickle", "False") == arguments.get("shell", "False") == "False", where


@pytest.mark.parametrize("module", MODULES)
def test_no_pickle_is_read(module):
    """Torchvision reads those of CIFAR, after their checksums."""
    picklers = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    assert not {name.split(".")[0] for name in imports(module)} & picklers
