"""Multiruns: every job checked first, each in a process of its own, failures recorded."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from conftest import ROOT, TINY
from hydra import compose, initialize_config_dir
from test_results import RUN

from cifar_lightning import errors
from cifar_lightning.config import schema
from cifar_lightning.errors import Interrupted
from cifar_lightning.runs import resolve
from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps import executors, jobs, run, slurm
from cifar_lightning.system import outcome, progress, signals
from cifar_lightning.system.locks import alone
from cifar_lightning.training import build as build_module

SMALL = (*TINY, "epochs=1", "batch_size=128")


def runs(outputs):
    return {folder.name: Run.load(folder) for folder in sorted((outputs / "runs").iterdir())}


def job(tmp_path, name="net-sgd-cosine-e1-s0-00000000", **trainer):
    settings = {
        "benchmark": {"variants": []},
        "trainer": trainer,
        "outputs": str(tmp_path),
        "rerun": True,
        "id": None,
    }
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return jobs.Job(("epochs=1",), name, settings, folder)


class Scripts:
    """Runs lines of Python, by the jobs' labels."""

    measures_later = False

    def __init__(self, scripts, max_parallel=1):
        self.scripts, self.max_parallel = scripts, max_parallel

    def start(self, job, overrides, slot, output):
        with output.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-c", self.scripts[job.label]], stdout=stream, stderr=stream
            )


def test_from_the_command_to_all_rows(command, outputs, forked):
    """Two at a time: trained first, then measured; the same command again has nothing to do."""
    settings = ("-m", *SMALL, "seed=0,1", "hydra.launcher.n_jobs=2")
    ended = command(*settings)
    assert ended.status == 0, ended.err
    done = runs(outputs)
    assert [run.config["seed"] for run in done.values()] == [0, 1]
    for name in done:
        (row,) = rows_of(outputs / "runs" / name)
        assert row.lat_mean_ms > 0
    lines = ended.out.splitlines()
    told = [line for line in lines if " of 2" in line]
    assert told[0] == "training 1 of 2: seed=0"
    assert [line.split()[0] for line in told if ": seed" in line] == ["training", "training"]
    assert re.fullmatch(r"1 of 2 jobs done after .*, about .* left \(seed=. took .*\)", told[2])
    assert told[3].startswith("2 of 2 jobs done after ")
    assert any(re.fullmatch(r"2 jobs in \d+ s", line) for line in lines)
    assert "measuring 2 runs" in lines
    assert len({row.benchmark for name in done for row in rows_of(outputs / "runs" / name)}) == 1
    assert any("+1 " in line and "±" in line for line in lines)  # also of disturbed rows
    begin = time.perf_counter()
    again = command(*settings, "id=named")
    assert time.perf_counter() - begin < 10
    assert again.status == 0
    assert {run.id for run in runs(outputs).values()} == {"named"}
    assert "2 of 2 jobs are finished" in again.out
    assert "training" not in again.out


def test_nothing_starts_before_all_are_right(command, outputs):
    """Mistakes that composing, our own rules and a constructor find, each in a line."""
    ended = command("-m", *SMALL, "model.depth=2,0", "optim.lr=0.1,-1")
    assert ended.status == 2
    assert sorted(line.partition(": must be")[0] for line in ended.err.splitlines()) == [
        "error: model.depth=0",
        "error: optim.lr=-1",
    ]
    assert not outputs.exists()


@pytest.mark.parametrize("n", ["0", "two", "1.5"])
def test_a_wrong_number_of_jobs(n, command, outputs):
    ended = command("-m", *SMALL, "seed=0,1", f"hydra.launcher.n_jobs={n}")
    assert ended.status == 2
    assert ended.err.startswith(f"error: hydra.launcher.n_jobs={n}: must be an integer")
    assert not outputs.exists()


UNDER_WAY = replace(RUN, name="killed", status="running")


def test_one_bad_job_does_not_hide_the_others(tmp_path):
    """One fails with an error, one is killed in the middle of its run, one is fine."""
    running = json.loads(UNDER_WAY.to_json())
    jobs = [job(tmp_path, name) for name in ("fails", "killed", "fine")]
    scripts = {
        "fails": "raise SystemExit('error: no such thing')",
        "killed": f"""
import json, os, pathlib
folder = pathlib.Path({str(jobs[1].folder)!r})
(folder / "run.json").write_text(json.dumps({running!r}))
print("half way", flush=True)
os.kill(os.getpid(), 9)""",
        "fine": f"open({str(tmp_path / 'fine')!r}, 'w')",
    }
    with pytest.raises(errors.RunFailed) as failed:
        run.run(jobs, Scripts(scripts))
    assert str(failed.value).splitlines() == [
        "fails: no such thing",
        "killed: killed by SIGKILL, perhaps for want of memory",
    ]
    assert (tmp_path / "fine").exists()
    assert Run.load(jobs[1].folder).status == "failed"
    assert (jobs[1].folder / "output.log").read_text() == "half way\n"
    assert ",failed," in (tmp_path / "results.csv").read_text()


def test_a_job_may_print_any_bytes(tmp_path):
    """And control characters of its last line are shown, not obeyed."""
    script = r"import sys; sys.stdout.buffer.write(b'\xff\x1b[2J\n'); sys.exit(1)"
    with pytest.raises(errors.RunFailed) as failed:
        run.run([job(tmp_path, "odd")], Scripts({"odd": script}))
    assert str(failed.value) == "odd: \\xff\x1b[2J"


def test_a_run_under_way_elsewhere_is_left_alone(tmp_path):
    """Its record says that it is running, and so it is: another process holds its lock."""
    one = job(tmp_path, "a")
    replace(UNDER_WAY, name="a").save(one.folder)
    with (
        alone(one.folder / ".lock", "held"),
        pytest.raises(errors.RunFailed, match="a: ended with status 3"),
    ):
        run.run([one], Scripts({"a": "raise SystemExit(3)"}))
    assert Run.load(one.folder).status == "running"


def test_runs_are_trained_once_and_measured_for_every_job(tmp_path, monkeypatch):
    """Jobs that differ only in what is measured, with rerun=true, apart and not."""

    class Recording(Scripts):
        def __init__(self, measures_later):
            super().__init__({}, 2)
            self.measures_later, self.started = measures_later, []

        def start(self, job, overrides, slot, output):
            self.started.append((job.folder.name, *overrides[len(job.overrides) :]))
            return subprocess.Popen(["true"])

    jobs = [job(tmp_path, name) for name in ("a", "a", "b")]
    measured = []
    monkeypatch.setattr(run, "measure", lambda jobs: measured.extend(jobs) or [])
    every = [jobs[0], replace(jobs[1], overrides=("x=1",)), jobs[2]]
    executor = Recording(measures_later=True)
    run.run(every, executor)
    assert executor.started == [("a", run.SKIP_BENCHMARK), ("b", run.SKIP_BENCHMARK)]
    assert measured == every
    executor.started.clear()
    run.run(every[:1], executor)  # a single job measures itself
    assert executor.started == [("a",)]
    assert measured == every
    executor = Recording(measures_later=False)
    run.run(every, executor)
    assert executor.started == [("a",), ("b",), ("a", "rerun=false")]
    assert measured == every


def test_jobs_that_come_to_the_same_are_one():
    """Equal ones, and such that differ in what changes nothing; not what is measured."""
    resolve.register()
    alike = [["seed=0"], ["seed=0", "id=B1"], ["seed=0", "benchmark=full"], ["seed=1"]]
    with initialize_config_dir(str(schema.CONF_DIR), version_base="1.3"):
        found = jobs.jobs(
            [[*SMALL, *overrides] for overrides in alike],
            lambda overrides: compose("train", list(overrides), return_hydra_config=True),
        )
    assert [job.overrides[len(SMALL) :] for job in found] == [
        ("seed=0",),
        ("seed=0", "benchmark=full"),
        ("seed=1",),
    ]
    assert found[0].folder == found[1].folder
    assert found[0].label == "seed=0"


@pytest.mark.parametrize("tests", [("true", "false"), ("false", "true"), ("false", "false")])
def test_of_a_run_that_is_tested_and_a_run_that_is_not_the_former_is_made(tests):
    resolve.register()
    with initialize_config_dir(str(schema.CONF_DIR), version_base="1.3"):
        (found,) = jobs.jobs(
            [[*SMALL, "benchmark.variants=[]", f"test={value}"] for value in tests],
            lambda overrides: compose("train", list(overrides), return_hydra_config=True),
        )
    assert found.config["test"] == ("true" in tests)


def test_each_network_is_built_once(tmp_path, monkeypatch, caplog):
    """However jobs of several networks follow each other; what differs beside them is checked."""
    built = []
    construct = build_module.construct

    def noted(name, *rest, **given):
        built.append(name)
        return construct(name, *rest, **given)

    for module in (build_module, build_module.components):
        monkeypatch.setattr(module, "construct", noted)
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    overrides = [
        [*SMALL, f"outputs={tmp_path}", f"model.depth={depth}", f"seed={seed}"]
        for seed in range(3)
        for depth in (1, 2)
    ]
    resolve.register()
    with initialize_config_dir(version_base="1.3", config_dir=str(schema.CONF_DIR)):

        def composed(texts):
            return compose("train", overrides=texts, return_hydra_config=True)

        with caplog.at_level("INFO"):
            found = jobs.jobs(overrides, composed)
        assert len(found) == 6
        assert built.count("model") == 2 * 2  # first without memory, which tells its size
        assert built.count("optim") == 6
        assert "composed: 3 of 6 jobs" in caplog.text
        assert "checked: 5 of 6 jobs" in caplog.text
        wrong = [*overrides, [*overrides[0], "optim.nesterov=5"]]
        with pytest.raises(errors.UserError, match=r"optim.nesterov"):
            jobs.jobs(wrong, composed)


def test_an_empty_sweep(command, outputs):
    ended = command("-m", *SMALL, "seed=range(3,3)")
    assert ended.status == 2
    assert ended.err == "error: -m: this sweep has no jobs\n"
    assert not outputs.exists()


def test_only_mistakes_of_the_user_give_their_status(tmp_path):
    script = "import sys; print('error: there is no folder', file=sys.stderr); sys.exit(2)"
    with pytest.raises(errors.UserError, match="there is no folder"):
        run.run([job(tmp_path, "a")], Scripts({"a": script}))


def test_at_most_so_many_at_a_time(tmp_path):
    """Each job sees how many are under way beside it."""
    (tmp_path / "now").mkdir()
    script = f"""
import os, pathlib, time
now = pathlib.Path({str(tmp_path / "now")!r})
mine = now / str(os.getpid())
mine.touch()
time.sleep(0.3)
print(len(list(now.iterdir())), flush=True)
assert len(list(now.iterdir())) <= 3
mine.unlink()"""
    names = [f"job{n}" for n in range(7)]
    run.run([job(tmp_path, name) for name in names], Scripts(dict.fromkeys(names, script), 3))


def test_a_cluster_that_takes_no_more_is_asked_again_later(tmp_path):
    class Limited(Scripts):
        def start(self, *given):
            under_way = [one for one in self.started if one.poll() is None]
            if len(under_way) >= 2 or given[0].label == "refused":
                raise errors.UserError("QOSMaxSubmitJobPerUserLimit")
            self.started.append(super().start(*given))
            return self.started[-1]

    names = [f"job{n}" for n in range(5)]
    executor = Limited(dict.fromkeys(names, "import time; time.sleep(0.2)"), sys.maxsize)
    executor.started = []
    run.run([job(tmp_path, name) for name in names], executor)
    assert len(executor.started) == 5
    with pytest.raises(errors.UserError, match="QOSMax"):
        run.run([job(tmp_path, "refused")], executor)


def test_a_gpu_and_a_part_of_the_cores_for_each(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    monkeypatch.setattr(executors, "usable_cores", lambda: 8)
    executor = executors.LocalExecutor(2)
    parts = [executor.environment(job(tmp_path), slot) for slot in range(3)]
    assert [part["CUDA_VISIBLE_DEVICES"] for part in parts] == ["3", "GPU-abc", "3"]
    assert parts[0]["OMP_NUM_THREADS"] == "4"
    assert "CUDA_VISIBLE_DEVICES" not in executor.environment(job(tmp_path, devices=2), 0)


@pytest.mark.slow
def test_sigterm_ends_the_jobs_and_the_sweep(outputs, forked):
    """The job under way, here the last one, ends after its batch."""
    arguments = [sys.executable, "train.py", "-m", f"outputs={outputs}", *TINY]
    arguments += ["epochs=200", "batch_size=128", "benchmark.variants=[]"]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    last = "runs/*/checkpoints/last.ckpt"
    while not list(outputs.glob(last)):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=30)[0]
    assert process.returncode == 143, out
    assert "error: interrupted; the same command again runs what is missing" in out
    (run,) = runs(outputs).values()
    assert run.status == "interrupted"


def test_a_signal_keeps_waiting_jobs_from_starting(tmp_path):
    started = tmp_path / "started"
    script = f"""
import os, pathlib, signal, time
with pathlib.Path({str(started)!r}).open("a") as stream:
    stream.write("x")
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)"""
    begin = time.perf_counter()
    with signals.handled(), pytest.raises(Interrupted) as stopped:
        run.run([job(tmp_path, "a"), job(tmp_path, "b")], Scripts({"a": script, "b": script}))
    assert stopped.value.exit_status == 143
    assert started.read_text() == "x"
    assert time.perf_counter() - begin < 30


@pytest.mark.slow
def test_slurm_by_its_local_stand_in(command, outputs):
    pytest.importorskip("submitit", reason="needs the extra `slurm`")
    ended = command(
        *("-m", *SMALL, "hydra/launcher=slurm", "hydra.launcher.cluster=local"),
        "hydra.launcher.gpus=0",
    )
    assert ended.status == 0, ended.err
    assert [run.status for run in runs(outputs).values()] == ["finished"]
    assert re.search(r"job \d+: ", ended.out)


def test_where_jobs_run_elsewhere_devices_are_a_number(command, outputs):
    """Of this machine's there may be others, and their number is part of a run's name."""
    pytest.importorskip("submitit", reason="needs the extra `slurm`")
    settings = ("-m", *SMALL, "hydra/launcher=slurm", "hydra.launcher.cluster=local")
    ended = command(*settings, "trainer.devices=auto,-1")
    assert ended.status == 2
    allowed = "must be a number: the nodes' devices are not known"
    assert ended.err.splitlines() == [
        f"error: trainer.devices={devices}: {allowed}" for devices in ("auto", -1)
    ]
    assert not outputs.exists()


class Submitted:
    """A job as submitit knows it."""

    num_tasks, job_id = 1, "7"

    def __init__(self, folder, results):
        self.results, self.paths = results, self
        self.result_pickle, self.stderr = folder / "result", folder / "7_0_log.err"

    def task(self, number):
        return self


def poll(folder, monkeypatch, squeue, results=None, scontrol="exit 1"):
    """Ask once how a job is, where SLURM's commands answer so."""
    for name, script in (("squeue", squeue), ("scontrol", scontrol)):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    one = Submitted(folder, results)
    if results:
        one.result_pickle.touch()
    process = slurm._Submitted(one, slurm._Queue().has_ended, folder / "output")
    return process.poll(), outcome.Outcome.read(executors.outcome_file(process.output))


def test_a_cluster_tells_which_jobs_have_ended(tmp_path, monkeypatch):
    """No accounting is asked; one that was killed left no result, and its error is one line."""
    assert poll(tmp_path, monkeypatch, "echo 6; echo 7")[0] is None
    assert poll(tmp_path, monkeypatch, "exit 1")[0] is None  # the controller is away
    said = outcome.Outcome("refused", "data.root=x: must be", "data.root")
    tasks = [slurm.Ended(0, None), slurm.Ended(2, said)]
    assert poll(tmp_path, monkeypatch, "echo 6", lambda: tasks) == (2, said)
    assert poll(tmp_path, monkeypatch, "echo 6", lambda: tasks[:1])[0] == 0

    def failed():
        raise RuntimeError("with trace:\n----\nTraceback\na.B: timed-out too many times.\n----")

    status, said = poll(tmp_path, monkeypatch, "exit 0", failed)
    assert (status, said.message) == (1, "job 7: timed-out too many times.")
    (tmp_path / "result").unlink()
    assert poll(tmp_path, monkeypatch, "exit 0")[0] is None  # its result may still come
    monkeypatch.setattr(slurm, "RESULT_WITHIN_S", 0.0)
    status, said = poll(
        tmp_path, monkeypatch, "exit 0", scontrol="echo JobId=7 JobState=OUT_OF_MEMORY Reason=x"
    )
    assert (status, said.kind) == (1, "killed")
    assert said.message == "job 7: ended without a result (OUT_OF_MEMORY)"


def test_a_mistake_in_slurms_parameters(command, outputs):
    pytest.importorskip("submitit", reason="needs the extra `slurm`")
    settings = ("-m", *SMALL, "seed=0,1", "hydra/launcher=slurm")
    ended = command(*settings, "hydra.launcher.cluster=local", "+hydra.launcher.more.a=1")
    assert ended.status == 2
    assert ended.err.startswith("error: hydra.launcher: ")
    assert not (outputs / "runs").exists()
