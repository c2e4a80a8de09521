"""An installed copy: the wheel holds everything, and its commands work in an empty folder."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, TINY

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "conf", "cifar_lightning", "hydra_plugins")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Build and install the wheel into a folder; the other packages are this environment's.

    Without isolation setuptools is this environment's, too, so no index has to be reachable. An
    environment without it asks pip to get one.
    """
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in SOURCES:
        path = ROOT / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, source / name)
    try:
        import setuptools

        recent = int(setuptools.__version__.partition(".")[0]) >= 77
    except ImportError:
        recent = False
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={target}",
         *(["--no-build-isolation", "--no-index"] if recent else []), str(source)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode and not recent:
        pytest.skip(f"needs setuptools 77: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def installed(site, tmp_path):
    """Run an installed command in an empty folder."""
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(name, *arguments, check=True):
        done = subprocess.run(
            [sys.executable, str(site / "bin" / f"cifar-lightning-{name}"), *arguments],
            cwd=empty, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(site)},
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    run.folder = empty
    return run


def test_the_wheel_holds_every_room_and_configuration(site):
    rooms = {path.parent for path in (ROOT / "cifar_lightning").rglob("__init__.py")}
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed - {"cifar_lightning.conf", "hydra_plugins"} == {
        ".".join(room.relative_to(ROOT).parts) for room in rooms
    }
    conf = site / "cifar_lightning" / "conf"
    ours = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert {path.relative_to(conf) for path in conf.rglob("*.yaml")} == ours
    templates = {path.relative_to(ROOT) for path in (ROOT / "cifar_lightning").rglob("*.jinja")}
    assert templates
    assert all((site / path).exists() for path in templates)


def test_every_command_has_a_script_and_a_module(site):
    names = {path.stem for path in (ROOT / "conf").glob("*.yaml") if path.stem[0] != "_"}
    assert {f"cifar-lightning-{name}" for name in names} == set(PROJECT["project"]["scripts"])
    for name in names:
        assert (site / "bin" / f"cifar-lightning-{name}").exists()
        assert (site / "cifar_lightning" / f"{name}.py").exists()


def test_an_installed_copy_trains_a_sweep_and_reports(installed, forked):
    small = (*TINY, "epochs=1", "batch_size=128", "benchmark.variants=[]")
    installed("train", "-m", *small, "model.depth=1,2", "hydra.launcher.n_jobs=2")
    table = (installed.folder / "outputs" / "results.md").read_text()
    assert len(table.splitlines()) == 4
    refused = installed("measure", "run=nothing", check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: run=nothing: ")
    assert {path.name for path in installed.folder.iterdir()} == {"outputs"}


@pytest.mark.slow
def test_every_installed_command_works(installed, forked):
    small = (*TINY, "epochs=1", "batch_size=128")
    installed("train", *small, "id=B1", "benchmark.variants=[fp32]")
    installed("train", *small, "trainer.devices=2", "trainer.strategy=ddp", "batch_size=64")
    installed("measure", "run=B1", "variants=[fused]", "protocol=quick", "device=cpu")
    installed("export", "run=B1", "format=safetensors")
    installed("tune", *small, "n_trials=1", "benchmark.variants=[]")
    assert "fused" in installed("report", "min_acc=1").stdout
    image = next(Path(ROOT / "docs").glob("*.png"))
    assert image.name in installed("predict", "run=B1", str(image)).stdout
