"""The rooms: imports go one way between them and their files, and the light ones stay light.

An import inside a function counts like any other.
"""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from conftest import ROOT

# Each room may import those before it. `errors.py` is everybody's.
ROOMS = (
    "system",
    "config",
    "models",
    "data",
    "variants",
    "runs",
    "benchmark",
    "deploy",
    "comparison",
    "training",
    "sweeps",
    "cli",
)
# Rooms that may import less than all before them.
NARROW = {
    "system": set(),
    "config": {"system"},
    "models": {"system"},
    "data": {"system", "config"},
    "variants": {"system"},
    "runs": {"system", "config"},
    "comparison": {"system", "config", "runs"},
}
LINES = 250  # of a file; longer ones are two ideas
PACKAGE = ROOT / "cifar_lightning"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "conf" not in path.parts)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(path):
    """Yield every module of ours that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from names or {node.module}


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (len(parts) == 2 and parts[1] in ROOMS) else None


IMPORTS = {name: set(imported(path)) - {name} for name, path in MODULES.items()}


def test_the_rooms_are_the_folders():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it(room):
    allowed = NARROW.get(room, set(ROOMS[: ROOMS.index(room)])) | {room, None}
    wrong = [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        if room_of(name) == room
        for target in targets
        if room_of(target) not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_files_import_one_way():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_private_names_stay_in_their_file(name):
    tree = ast.parse(MODULES[name].read_text())
    taken = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cifar_lightning")
        for alias in node.names
        if alias.name.startswith("_")
    }
    assert not taken


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_is_short(path):
    assert len(path.read_text().splitlines()) <= LINES


def loaded_by(module):
    code = (
        f"import sys, {module};"
        "print([m for m in ('torch', 'lightning', 'numpy') if m in sys.modules])"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "cifar_lightning",
        "cifar_lightning.cli.train",
        "cifar_lightning.runs.measurement",
        "cifar_lightning.runs.table",
    ],
)
def test_what_is_light_imports_nothing_heavy(module):
    assert loaded_by(module) == "[]"


def test_a_measuring_process_begins_without_lightning():
    """Eight of them begin for each benchmark; only calibration reads data."""
    assert "'lightning'" not in loaded_by("cifar_lightning.benchmark.processes")


def test_timing_needs_no_hydra():
    """`make gpu-check` runs where nothing was installed."""
    modules = "cifar_lightning.benchmark.rounds, cifar_lightning.benchmark.contention, sys"
    code = f"import {modules}; print({{'hydra', 'omegaconf', 'lightning'}} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
