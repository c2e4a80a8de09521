"""Several processes at work on one search, one of them killed again and again.

Trainings are pretended; each says in a file when it begins and ends.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest
from conftest import ROOT
from test_front import SMALL as FRONT
from test_search import SMALL, SPACE

from cifar_lightning.sweeps.claims import KILLED_TOO_OFTEN
from cifar_lightning.sweeps.study import UNCOUNTED

optuna = pytest.importorskip("optuna", reason="needs the extra `tune`")

STORAGE = os.environ.get("TEST_STORAGE")  # a database's URL

DRIVER = """
import os, sys, time
from contextlib import contextmanager
from pathlib import Path
sys.path[:0] = ["tests", "."]
import pytest, test_front, test_search
from cifar_lightning.system.locks import locked

said, seconds = Path(sys.argv.pop(1)), float(sys.argv.pop(1))

def say(*words):
    with said.open("a") as stream:
        print(*words, file=stream)

def training(key, train):
    with locked(said.with_name(f"{key}.lock"), "waiting"):  # two trials may be of one run
        if f"ended {key}\\n" in said.read_text():  # a finished one is not trained again
            return train()
        say("begun", key)
        time.sleep(seconds)
        ending = train()
        say("ended", key)
        return ending

class Settings(test_search.Pretending):
    def attempt(self, jobs, place):
        return training(jobs[0].folder.name, lambda: super(Settings, self).attempt(jobs, place))

class Front(test_front.Pretending):
    def train(self, overrides, searched):
        said = dict(override.split("=", 1) for override in overrides)
        seed = f"-seed{said['seed']}" if "seed" in said else ""  # of a final run
        key = f"{said['model.channels']}{seed}-{said['epochs']}"
        return training(key, lambda: super(Front, self).train(overrides, searched))

    def run(self, jobs, executor):
        say("measured", len(jobs))

said.touch()
with pytest.MonkeyPatch.context() as patch:
    (Front if "search=front" in sys.argv else Settings)(patch)
    import tune
    tune.main()
"""


class Processes:
    """Starts the driver several times on the same outputs, or on others with one storage."""

    def __init__(self, folder, *arguments, seconds=0.2):
        self.said, self.arguments, self.seconds = folder / "said", arguments, seconds

    def start(self, outputs):
        return subprocess.Popen(
            [
                sys.executable, "-c", DRIVER, str(self.said), str(self.seconds),
                f"outputs={outputs}", *self.arguments,
            ],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def lines(self, word):
        said = self.said.read_text().splitlines() if self.said.exists() else []
        return [line.partition(" ")[2] for line in said if line.startswith(f"{word} ")]

    def run_and_kill(self, outputs, kills):
        """Run three until they end, and kill the first one again and again meanwhile."""
        generator = random.Random(0)
        first, *others = [self.start(outputs) for _ in range(3)]
        for _ in range(kills):
            before = len(self.lines("begun"))
            while len(self.lines("begun")) == before and others[0].poll() is None:
                time.sleep(0.02)
            time.sleep(generator.uniform(0, self.seconds))
            first.kill()
            first.communicate()
            first = self.start(outputs)
        ended = []
        for one in (first, *others):
            out = one.communicate(timeout=300)[0]
            assert one.returncode == 0, out
            ended.append(out)
        return ended


def trials_of(storage):
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def journal(outputs):
    (path,) = outputs.glob("searches/*/journal.log")
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    return optuna.storages.JournalStorage(backend)


@pytest.mark.slow
def test_no_trial_is_done_twice_and_none_is_lost(outputs, tmp_path, forked):
    processes = Processes(tmp_path, *SMALL, *SPACE, "n_trials=40")
    processes.run_and_kill(outputs, kills=6)
    trials = trials_of(journal(outputs))
    assert [trial.number for trial in trials] == [*range(40)]
    assert all(trial.state.is_finished() for trial in trials)
    begun, ended = (Counter(processes.lines(word)) for word in ("begun", "ended"))
    good = [trial.user_attrs["run"] for trial in trials if trial.value is not None]
    assert len({*good}) == len(good) == len(ended)
    assert {*good} == {*ended}
    assert max(ended.values()) == 1
    assert max(begun.values()) <= 1 + KILLED_TOO_OFTEN
    for trial in trials:  # only one that was killed too often has failed
        if trial.value is None:
            assert "cause" not in trial.user_attrs
    assert not [*outputs.glob("searches/*/trial-*")]


@pytest.mark.slow
def test_the_same_of_a_ladder(outputs, tmp_path, forked):
    """Rungs and final runs, too."""
    processes = Processes(tmp_path, *FRONT, "n_trials=40")
    processes.run_and_kill(outputs, kills=6)
    trials = trials_of(journal(outputs))
    assert [trial.number for trial in trials] == [*range(len(trials))]
    assert sum(UNCOUNTED not in trial.user_attrs for trial in trials) == 40
    assert all(trial.state.is_finished() for trial in trials)
    ended = Counter(processes.lines("ended"))
    assert max(ended.values()) == 1
    assert {key.rpartition("-")[2] for key in ended} == {"1", "2", "4", "60"}
    # What one process has measured no other one measures, but again after a kill.
    assert processes.lines("measured")


@pytest.mark.slow
def test_final_runs_at_once(outputs, tmp_path, forked):
    """Each process trains others; a seed waits for nobody's."""
    one = Processes(tmp_path, *FRONT, "n_trials=12", "targets=[85]", "final_seeds=[]")
    assert one.start(outputs).wait(timeout=300) == 0
    rungs = len(one.lines("begun"))
    settings = "n_trials=12", "targets=[60,85]", "final_seeds=[0,1,2,3]"
    several = Processes(tmp_path, *FRONT, *settings, seconds=3.0)
    for process in [several.start(outputs) for _ in range(3)]:
        out = process.communicate(timeout=300)[0]
        assert process.returncode == 0, out
    order = several.said.read_text().splitlines()[2 * rungs :]
    at_once = most = 0
    for line in order:
        at_once += {"begun": 1, "ended": -1}.get(line.partition(" ")[0], 0)
        most = max(most, at_once)
    assert most == 3, order
    ended = Counter(several.lines("ended"))
    assert max(ended.values()) == 1
    by_network = Counter(key.partition("-")[0] for key in ended if "seed" in key)
    assert sorted(by_network.values())[-2:] == [4, 4]
    assert several.lines("measured")


@pytest.mark.slow
@pytest.mark.parametrize("search", [(*SMALL, *SPACE), FRONT], ids=["settings", "front"])
@pytest.mark.parametrize("storage", ["sqlite", STORAGE])
def test_outputs_that_share_a_database_alone(storage, search, outputs, tmp_path, forked):
    """Each trial belongs to the outputs that began it, with all its rungs."""
    if storage is None:
        pytest.skip("needs a database: TEST_STORAGE=postgresql+psycopg://...")
    url = f"sqlite:///{tmp_path}/shared.db" if storage == "sqlite" else storage
    opened = optuna.storages.get_storage(url)
    for name in optuna.get_all_study_names(opened):
        optuna.delete_study(study_name=name, storage=opened)
    processes = Processes(tmp_path, *search, "n_trials=16", f"storage={url}")
    both = [processes.start(tmp_path / name) for name in ("one", "other")]
    for process in both:
        out = process.communicate(timeout=300)[0]
        assert process.returncode == 0, out
        assert url.partition("://")[2] not in out
    trials = trials_of(opened)
    counted = [trial for trial in trials if UNCOUNTED not in trial.user_attrs]
    assert 16 <= len(counted) <= 17  # both may have begun the last one
    assert {trial.state.name for trial in counted} == {"COMPLETE"}
    assert len({trial.user_attrs["owner"] for trial in trials}) == 2
    assert max(Counter(processes.lines("ended")).values()) == 1
    if search is FRONT:
        rungs = {key.rpartition("-")[2] for key in processes.lines("ended")}
        assert rungs == {"1", "2", "4", "60"}
