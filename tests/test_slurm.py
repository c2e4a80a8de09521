"""A real SLURM, where one runs: docs/reliability.md says how to make one of one machine."""

import re
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TINY
from test_processes import TWO, assert_one_row

from cifar_lightning.runs.run import Run

RUNNING = shutil.which("sinfo") and subprocess.run(["sinfo"], capture_output=True).returncode == 0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not RUNNING, reason="needs a running SLURM: docs/reliability.md has one"),
]

SMALL = (*TINY, "benchmark.variants=[]")
LAUNCHER = ("hydra/launcher=slurm", "hydra.launcher.gpus=0", "hydra.launcher.cpus=1")


def start(outputs, *arguments):
    pytest.importorskip("submitit", reason="needs the extra `slurm`")
    return subprocess.Popen(
        [sys.executable, "train.py", "-m", *SMALL, f"outputs={outputs}", *LAUNCHER, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def sweep(outputs, *arguments):
    process = start(outputs, *arguments)
    out = process.communicate(timeout=600)[0]
    return process.returncode, out


def states(outputs):
    runs = [Run.load(folder) for folder in (outputs / "runs").iterdir()]
    return {(run.config["epochs"], run.config["optim"]["lr"]): run.status for run in runs}


def test_a_sweep_of_four(outputs):
    """One is done, two fail, one is stopped by its time limit; the same command continues it."""
    settings = ("epochs=1,100000", "optim.lr=0.1,1e30", "+trainer.max_time=00:00:01:50")
    limit = ("hydra.launcher.minutes=1", "+hydra.launcher.more.slurm_signal_delay_s=0")
    status, out = sweep(outputs, *settings, *limit)
    assert status == 1, out
    lines = out.splitlines()
    assert len([line for line in lines if line.startswith("error: epochs=")]) == 3
    assert len([line for line in lines if "lr=1e+30: the training loss is nan" in line]) == 2
    assert states(outputs) == {
        (1, 0.1): "finished",
        (1, 1e30): "failed",
        (100000, 0.1): "interrupted",
        (100000, 1e30): "failed",
    }
    status, out = sweep(outputs, *settings, "hydra.launcher.minutes=10")
    assert status == 1, out
    assert "1 of 4 jobs are finished" in out
    assert states(outputs)[100000, 0.1] == "finished"
    logs = [path.read_text() for path in (outputs / "sweeps" / "slurm").glob("*.out")]
    assert len([text for text in logs if re.search(r"continuing after epoch \d", text)]) == 1


def test_a_job_goes_on_in_a_new_one_when_its_time_is_up_and_is_killed(outputs):
    limit = ("hydra.launcher.minutes=1", "+hydra.launcher.more.slurm_signal_delay_s=10")
    process = start(outputs, "epochs=100000", *limit)
    job = None
    while job is None:
        job = re.search(r"job (\d+): ", process.stdout.readline())

    def state():
        told = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job[1]], stdout=subprocess.PIPE, text=True
        )
        return re.search(r"JobState=(\w+).*Restarts=(\d+)", told.stdout).groups()

    while state() != ("PENDING", "1"):
        assert process.poll() is None, process.stdout.read()
        time.sleep(1)
    # SLURM would let it wait for two minutes.
    subprocess.run(["scontrol", "update", f"JobId={job[1]}", "StartTime=now"], check=True)
    (said,) = (outputs / "sweeps" / "slurm").glob("*.out")
    while "continuing after epoch" not in said.read_text():
        assert process.poll() is None, process.stdout.read()
        time.sleep(1)
    subprocess.run(["scancel", "--signal=KILL", job[1]], check=True)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 1, out
    # SLURM may ask it to end before it kills it.
    last = out.splitlines()[-1]
    assert re.search(rf"job {job[1]}: ended without a result \(|: interrupted; the same", last)
    assert states(outputs)[100000, 0.1] in ("failed", "interrupted")


def test_from_a_machine_without_a_gpu(outputs):
    """The node looks for it, here in vain; what it says arrives."""
    status, out = sweep(outputs, "epochs=1", "trainer.accelerator=gpu")
    assert status == 2, out
    assert "job " in out
    assert "trainer.accelerator=gpu: must be cpu or auto: there is no GPU here" in out


def test_an_array_by_the_documented_script(outputs, tmp_path):
    text = (ROOT / "docs" / "reliability.md").read_text()
    (script,) = re.findall(r"( {4}#!/bin/bash\n(?: {4}.*\n)+)", text)
    settings = "data=digits augment=crop trainer.accelerator=cpu epochs=1 'benchmark.variants=[]'"
    for ours, theirs in (
        ("    ", ""),
        ("#SBATCH --gpus=1\n", ""),
        ("0-5", "0-3"),
        ("(mobilenetv3 shufflenetv2)", "(cifarnet repvgg)"),
        ("python train.py", f"{sys.executable} train.py outputs={outputs} {settings}"),
    ):
        assert ours in script
        script = script.replace(ours, theirs)
    path = tmp_path / "array.sh"
    path.write_text(script)
    ended = subprocess.run(
        ["sbatch", "--wait", f"--output={tmp_path}/%a.txt", str(path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    said = [one.read_text() for one in sorted(tmp_path.glob("?.txt"))]
    assert ended.returncode == 0, said
    runs = [Run.load(folder) for folder in (outputs / "runs").iterdir()]
    assert {(run.choices["model"], run.config["seed"]) for run in runs} == {
        (model, seed) for model in ("cifarnet", "repvgg") for seed in (0, 1)
    }
    assert {run.status for run in runs} == {"finished"}


def test_two_tasks(outputs):
    command = [sys.executable, "train.py", *TWO, "trainer.strategy=ddp", f"outputs={outputs}"]
    srun = ["srun", "--ntasks-per-node=2"]
    ended = subprocess.run([*srun, *command], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (folder,) = (outputs / "runs").iterdir()
    assert_one_row(folder)
    again = subprocess.run([*srun, *command], cwd=ROOT, capture_output=True, text=True)
    assert again.stdout.count("is finished") == 1


@pytest.mark.parametrize("tasks", ["--ntasks=2", "--ntasks-per-node=2"])
def test_two_tasks_without_srun(tasks, outputs, tmp_path):
    said = tmp_path / "said"
    command = f"cd {ROOT}; {sys.executable} train.py {' '.join(TWO)} outputs={outputs}"
    ended = subprocess.run(
        ["sbatch", "--wait", tasks, f"--output={said}", f"--wrap={command}"], capture_output=True
    )
    assert ended.returncode == 2
    assert said.read_text().startswith("error: SLURM_NTASKS=2: must be 1 without srun")
    assert said.read_text().count("\n") == 1
    assert not outputs.exists()
