"""The search: a small space on digits, killed and taken up again."""

import pytest
from conftest import TINY
from test_results import MACHINE

from cifar_lightning import sweep
from cifar_lightning.errors import RunFailed
from cifar_lightning.provenance import Code
from cifar_lightning.results import Run

pytest.importorskip("optuna", reason="needs the extra `tune`")

SPACE = (
    "~space.scheduler",
    "~space.optim.weight_decay",
    "space.optim.lr.low=0.01",
    "space.optim.lr.high=1.0",
    "space.label_smoothing.choices=[0.0,0.1]",
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
        monkeypatch.setattr(sweep, "run", self.run)

    def run(self, jobs, place):
        (job,) = jobs
        rate = job.config["optim"]["lr"]
        self.rates.append(rate)
        if len(self.rates) == self.stop_at:
            raise KeyboardInterrupt
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


def test_trials_are_ordinary_runs(tune, outputs):
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


def test_a_failure_that_is_not_the_settings_ends_the_search(tune, monkeypatch):
    """And the same command again takes up that trial; a loss that is no number counts as one."""
    pretending = Pretending(monkeypatch)
    outcomes = iter(["killed by SIGKILL", "the training loss is nan in epoch 1", None])
    run = pretending.run

    def failing(jobs, place):
        run(jobs, place)
        if outcome := next(outcomes, None):
            raise RunFailed(f"a: {outcome}")

    monkeypatch.setattr(sweep, "run", failing)
    status, _, err = tune(*SPACE, "n_trials=2")
    assert status == 1
    assert err == "error: a: killed by SIGKILL\n"
    status, out, err = tune(*SPACE, "n_trials=2")
    assert status == 0
    assert "0 of 2 trials are done" in out
    assert pretending.rates[0] == pretending.rates[1] != pretending.rates[2]
    assert len(pretending.rates) == 3


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


def test_another_space_is_another_study(tune, monkeypatch):
    pretending = Pretending(monkeypatch)
    for upper in (0.5, 0.6):
        assert tune(f"space.optim.lr.high={upper}", "n_trials=2")[0] == 0
    assert len(pretending.rates) == 4


BAD = {
    "~space.label_smoothing,~space.scheduler,~space.optim": "error: space={}: allowed is at least",
    "space.optim.lr=1": "error: space.optim.lr=1: allowed is {low: ..., high: ...}, {choices",
    "space.optim.lr.low=1": "error: space.optim.lr={'low': 1, 'high': 0.8,",
    "space.scheduler.warmup.low=-1": "error: scheduler.warmup=-1: allowed is",
    "space.optim.lr.low=0": "error: space.optim.lr.low=0: allowed is a number above 0 where log",
    "+space.optim.lrr={low: 0, high: 1}": "error: optim.lrr: no such key; did you mean lr?",
    "+space.optim.lr.hihg=2": "error: space.optim.lr.hihg: no such key; did you mean high?",
    "space.optim.lr.hihg=2": "error: space.optim.lr.hihg: no such key; did you mean high?",
    "space.label_smoothing.choices=[]": "error: space.label_smoothing={'choices': []}: allowed is",
    "space.label_smoothing.choices=[0.1,3]": "error: label_smoothing=3.0: allowed is",
    "n_trials=0": "error: n_trials=0: allowed is a whole number of at least 1",
    "n_trials=many": "error: n_trials=many: allowed is a whole number",
    "epohcs=1": "error: epohcs: no such key; did you mean epochs?",
    "optim.lr=-1": "error: optim.lr=-1: allowed is",
    "data.val_fraction=0": "error: data.val_fraction=0: allowed is above 0: held-out images",
}


@pytest.mark.parametrize("override", BAD)
def test_mistakes(override, tune, outputs, monkeypatch):
    pretending = Pretending(monkeypatch)
    status, _, err = tune(*(override.split(",") if "~" in override else [override]))
    assert status == 2
    assert err.startswith(BAD[override])
    assert not pretending.rates
    assert not outputs.exists()
