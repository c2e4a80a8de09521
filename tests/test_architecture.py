"""Imports go one way, and the command stays light until its configuration is good."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

ORDER = (
    "errors",
    "escaping",
    "outcome",
    "cores",
    "waiting",
    "streams",
    "interruption",
    "files",
    "gate",
    "latency_stats",
    "recipes",
    "provenance",
    "config",
    "results",
    "folders",
    "comparison",
    "columns",
    "plots",
    "board",
    "identity",
    "command",
    "finished",
    "company",
    "augment",
    "cifar_archive",
    "image_files",
    "sources",
    "data",
    "backbones",
    "schedules",
    "distill",
    "classifier",
    "footprint",
    "latency",
    "variants",
    "measure",
    "callbacks",
    "experiment",
    "sweep",
    "search",
    "report",
    "predict",
    "export",
)
PACKAGE = ROOT / "cifar_lightning"


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "cifar_lightning":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "cifar_lightning."
        ):
            yield node.module.split(".")[1]


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ORDER, "__init__"}


@pytest.mark.parametrize("module", ORDER)
def test_no_module_imports_a_later_one(module):
    later = ORDER[ORDER.index(module) :]
    assert not set(imported_modules(PACKAGE / f"{module}.py")) & set(later)


def test_the_command_imports_nothing_heavy():
    check = (
        "import sys, train; print([m for m in ('torch', 'lightning', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
