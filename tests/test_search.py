"""The search: a small space on digits, killed and taken up again."""

import errno

import pytest
from conftest import TINY
from test_front import dies_in_work
from test_results import MACHINE

from cifar_lightning.runs.run import Run
from cifar_lightning.sweeps import run
from cifar_lightning.sweeps.run import Failure
from cifar_lightning.system.environment import Code
from cifar_lightning.system.outcome import Outcome

optuna = pytest.importorskip("optuna", reason="needs the extra `tune`")

SPACE = (
    "~space.scheduler",
    "~space.optim.weight_decay",
    "~space.label_smoothing",
    "space.optim.lr.low=0.01",
    "space.optim.lr.high=1.0",
)
SMALL = (*TINY, "epochs=1", "batch_size=128", "benchmark.variants=[]")


@pytest.fixture
def tune(outputs, call):
    import tune as script

    def run(*overrides):
        ended = call(script.main, f"outputs={outputs}", *SMALL, *overrides)
        return ended.status, ended.out, ended.err

    return run


class Pretending:
    """Runs jobs in no time: the closer the learning rate to 0.1, the better."""

    def __init__(self, monkeypatch):
        self.rates = []
        self.stop_at = None
        self.endings = {}
        monkeypatch.setattr(run, "attempt", self.attempt)

    def attempt(self, jobs, place):
        (job,) = jobs
        rate = job.config["optim"]["lr"]
        self.rates.append(rate)
        if len(self.rates) == self.stop_at:
            raise KeyboardInterrupt
        ending = self.endings.get(len(self.rates), self.endings.get("each"))
        if ending is not None:
            status, kind, key = ending
            return [Failure(job, status, Outcome(kind, f"a reason, {rate:.3f}", key))]
        accuracy = 100 - abs(rate - 0.1) * 50
        run = Run(
            name=job.folder.name,
            id=None,
            choices={"model": "net", "optim": "sgd", "scheduler": "cosine"},
            config=job.config,
            status="finished",
            started="2026-01-01T00:00:00+00:00",
            data_fingerprint="f" * 16,
            code=Code(),
            versions={},
            machine=MACHINE,
            params=1,
            macs=1,
            val_acc=accuracy,
            test_acc=100 - accuracy,  # a search that looked at it would go the other way
        )
        run.save(job.folder)
        return []


def test_trials_are_ordinary_runs(tune, outputs, forked):
    status, out, err = tune(*SPACE, "n_trials=1")
    assert status == 0, err
    (folder,) = (outputs / "runs").iterdir()
    run = Run.load(folder)
    assert run.status == "finished"
    assert 0.01 <= run.config["optim"]["lr"] <= 1.0
    assert folder.name in (outputs / "results.csv").read_text()
    assert f"{run.val_acc:.2f} % val acc  {folder.name}" in out
    status, out, err = tune(*SPACE, "n_trials=1")
    assert status == 0
    assert "1 of 1 trials are done" in out


def test_it_finds_the_better_settings(tune, monkeypatch):
    pretending = Pretending(monkeypatch)
    status, out, err = tune(*SPACE, "n_trials=18")
    assert status == 0, err
    assert len(pretending.rates) == 18
    best = float(out.splitlines()[-1].split("optim.lr=")[1].split()[0])
    assert best == pytest.approx(0.1, rel=0.3)
    late, early = pretending.rates[-8:], pretending.rates[:8]
    assert sum(abs(r - 0.1) for r in late) < sum(abs(r - 0.1) for r in early)


def test_it_goes_on_where_it_was_stopped(tune, monkeypatch):
    """The trial under way is taken up again, with the same settings, and none is lost."""
    pretending = Pretending(monkeypatch)
    pretending.stop_at = 3
    assert tune(*SPACE, "n_trials=5")[0] == 130
    pretending.stop_at = None
    status, out, err = tune(*SPACE, "n_trials=5")
    assert status == 0, err
    assert "2 of 5 trials are done" in out
    assert len(pretending.rates) == 6
    assert pretending.rates[2] == pretending.rates[3]
    assert len(set(pretending.rates)) == 5


@pytest.mark.parametrize(
    "ending",
    [(1, "failed", None), (2, "refused", "data.root"), (130, "interrupted", None)],
    ids=lambda ending: ending[1],
)
def test_a_failure_that_is_not_the_settings_ends_the_search(tune, monkeypatch, ending):
    """And the same command again takes up that trial."""
    pretending = Pretending(monkeypatch)
    pretending.endings = {2: ending}
    status, _, err = tune(*SPACE, "n_trials=3")
    assert status == (2 if ending[1] == "refused" else 1)
    assert err == f"error: a reason, {pretending.rates[-1]:.3f}\n"
    status, out, err = tune(*SPACE, "n_trials=3")
    assert status == 0, err
    assert "1 of 3 trials are done" in out
    assert len(pretending.rates) == 4
    assert pretending.rates[1] == pretending.rates[2]


@pytest.mark.parametrize(
    "ending",
    [
        (1, "not_finite", None),
        (1, "crashed", None),
        (-9, "killed", None),
        (2, "refused", "optim.lr"),
        (2, "refused", "optim"),
    ],
    ids=lambda ending: f"{ending[1]} {ending[2]}",
)
def test_settings_that_cannot_be_trained_are_a_failed_trial(tune, monkeypatch, ending):
    """The search goes on, tells the reason, and does not begin with them again."""
    pretending = Pretending(monkeypatch)
    pretending.endings = {1: ending}
    status, out, err = tune(*SPACE, "n_trials=3")
    assert status == 0, err
    assert len(set(pretending.rates)) == 3
    reason = f"a reason, {pretending.rates[0]:.3f}"
    (told,) = [line for line in out.splitlines() if line.startswith("failed: optim.lr=")]
    assert told.endswith(reason)
    status, out, err = tune(*SPACE, "n_trials=4")
    assert "3 of 4 trials are done" in out
    assert len(set(pretending.rates)) == 4


def test_a_search_in_which_all_fails_alike_ends(tune, monkeypatch):
    pretending = Pretending(monkeypatch)
    pretending.endings = {"each": (1, "crashed", None)}
    status, _, err = tune(*SPACE, "n_trials=10")
    assert status == 1
    assert len(pretending.rates) == 3
    assert "all 3 trials failed for the same reason; the last one: a reason, " in err
    assert tune(*SPACE, "n_trials=10")[0] == 1
    assert len(pretending.rates) == len(set(pretending.rates)) == 4
    pretending.endings = {}
    status, out, _ = tune(*SPACE, "n_trials=6")
    assert status == 0
    assert "4 of 6 trials are done" in out


def test_different_failures_do_not_end_it(tune, monkeypatch):
    pretending = Pretending(monkeypatch)
    kinds = ("crashed", "killed", "crashed", "not_finite")
    pretending.endings = {number: (1, kind, None) for number, kind in enumerate(kinds, 1)}
    status, out, _ = tune(*SPACE, "n_trials=5")
    assert status == 0
    assert len(pretending.rates) == 5
    assert out.count("\nfailed: ") == 4


def test_a_trial_that_kills_the_search_is_not_first_for_ever(tune, monkeypatch):
    """As where too little memory ends trial and search together."""
    pretending = Pretending(monkeypatch)

    def killed(jobs, place):
        pretending.rates.append(jobs[0].config["optim"]["lr"])
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "attempt", killed)
    dies_in_work(monkeypatch)
    for _ in range(4):
        assert tune(*SPACE, "n_trials=2")[0] == 130
    assert len(set(pretending.rates[:3])) == 1
    assert pretending.rates[3] != pretending.rates[0]


def test_a_real_search_goes_on_after_settings_that_cannot_be_trained(tune, outputs, forked):
    only = ("~space.scheduler", "~space.optim", "~space.label_smoothing")
    status, out, err = tune(*only, "+space.batch_size={choices: [64, 5000]}", "n_trials=4")
    assert status == 0, err
    assert "trial 4 of 4" in out
    assert "best: batch_size=64" in out
    assert "failed: batch_size=5000: batch_size=5000: " in out
    (folder,) = (outputs / "runs").iterdir()
    assert Run.load(folder).status == "finished"


def test_a_choice_may_be_null(tune, monkeypatch):
    Pretending(monkeypatch)
    status, out, err = tune(*SPACE, "+space.ema.choices=[null]", "n_trials=1")
    assert status == 0, err
    assert "ema=null" in out.splitlines()[-1]
    assert "ema=null" in out.splitlines()[-2]


def test_a_search_is_no_sweep(tune, outputs):
    status, _, err = tune("-m", "seed=0,1")
    assert status == 2
    assert err == "error: -m: tune takes no sweep\n"
    assert not outputs.exists()


def test_studies_that_can_not_be_used(tune, outputs, monkeypatch):
    """Whatever Optuna finds wrong is the file's, and a full disk is said as everywhere."""
    Pretending(monkeypatch)
    assert tune(*SPACE, "n_trials=1")[0] == 0
    (journal,) = outputs.glob("searches/*/journal.log")
    journal.write_text("no journal\n" * 100)
    status, _, err = tune(*SPACE, "n_trials=1")
    assert status == 2
    assert err.startswith(f"error: {journal}: can't be used: JSONDecodeError: ")
    assert err.count("\n") == 1

    journal.unlink()

    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(optuna, "create_study", full)
    status, _, err = tune(*SPACE, "n_trials=1")
    assert (status, err.count("no space left")) == (1, 1)


def test_another_space_is_another_study(tune, monkeypatch):
    pretending = Pretending(monkeypatch)
    for upper in (0.5, 0.6):
        assert tune(f"space.optim.lr.high={upper}", "n_trials=2")[0] == 0
    assert len(pretending.rates) == 4


BAD = {
    "~space.label_smoothing,~space.scheduler,~space.optim": "error: space={}: must be at least",
    "space.optim.lr=1": "error: space.optim.lr=1: must be {low: ..., high: ...}, {choices",
    "space.optim.lr.low=1": "error: space.optim.lr={'low': 1, 'high': 0.8,",
    "space.scheduler.warmup.low=-1": "error: scheduler.warmup=-1: must be",
    "space.optim.lr.low=0": "error: space.optim.lr.low=0: must be a number above 0 where log",
    "+space.optim.lrr={low: 0, high: 1}": "error: optim.lrr: no such key; did you mean lr?",
    "+space.optim.lr.hihg=2": "error: space.optim.lr.hihg: no such key; did you mean high?",
    "space.optim.lr.hihg=2": "error: space.optim.lr.hihg: no such key; did you mean high?",
    "space.label_smoothing.choices=[]": "error: space.label_smoothing={'choices': []}: must be",
    "space.label_smoothing.choices=[0.1,3]": "error: label_smoothing=3.0: must be",
    "n_trials=0": "error: n_trials=0: must be an integer of at least 1",
    "n_trials=many": "error: n_trials=many: must be an integer",
    "epohcs=1": "error: epohcs: no such key; did you mean epochs?",
    "optim.lr=-1": "error: optim.lr=-1: must be",
    "data.val_fraction=0": "error: data.val_fraction=0: must be above 0: held-out images",
}


@pytest.mark.parametrize("override", BAD)
def test_mistakes(override, tune, outputs, monkeypatch):
    pretending = Pretending(monkeypatch)
    status, _, err = tune(*(override.split(",") if "~" in override else [override]))
    assert status == 2
    assert err.startswith(BAD[override])
    assert not pretending.rates
    assert not outputs.exists()
