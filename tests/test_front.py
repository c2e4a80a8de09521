"""The search for networks that are fast and accurate: pretended trainings, and one in earnest."""

import ast
import sqlite3
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import count, pairwise
from types import SimpleNamespace

import pytest
from test_results import MEASUREMENT, RUN, place

import tune as script
from cifar_lightning.config.rules import check
from cifar_lightning.errors import RunFailed, UserError
from cifar_lightning.sweeps import drawn, finals, front, front_shown, space
from cifar_lightning.sweeps.claims import KILLED_TOO_OFTEN, Claim
from cifar_lightning.sweeps.found import LATENCY, Found, Timed
from cifar_lightning.sweeps.jobs import Job
from cifar_lightning.sweeps.study import Study
from cifar_lightning.sweeps.trial import checked, composed
from cifar_lightning.system import locks
from cifar_lightning.system.outcome import Outcome

optuna = pytest.importorskip("optuna", reason="needs the extra `tune`")

SHIPPED = (  # keys of conf/space/plain.yaml
    "channels", "depth", "stem", "stem_kernel", "stem_stride", "whiten", "downsample", "activation",
    "pool", "scale", "residual", "branches", "resolution",
)  # fmt: skip
# A network of three channels that differ in number, and nothing else.
SMALL = (
    "search=front",
    "base=[]",
    "model=cifarnet",
    "data=digits",
    "augment=crop",
    "trainer.accelerator=cpu",
    "model.whiten=false",
    *(f"~space.model.{key}" for key in SHIPPED if key != "channels"),
    "space.model.channels.length.low=2",
    "space.model.channels.length.high=2",
    "space.model.channels.first.low=4",
    "space.model.channels.first.high=99",
    "space.model.channels.first.step=1",
    "space.model.channels.growth=[1]",
    "rungs=[1,2,4]",
    "final_seeds=[0,1]",
    "final_minutes=1",
    "targets=[60,85,100]",
)  # fmt: skip


CHECKED: dict[str, tuple[Job, list[Job]]] = {}


class Trained(front.Run):
    """A run of which only some fields are known."""

    def __init__(self, **known):
        for key, value in known.items():
            object.__setattr__(self, key, value)


def errors(width, epochs):
    """Fall with a power of the epochs, in percent."""
    return (50 - width / 2.5) / epochs**0.2


class Pretending:
    """Trains and times in no time: wider networks are slower and more accurate."""

    def __init__(self, monkeypatch):
        self.trained: list[tuple[int, int]] = []
        self.final: list[str] = []
        self.timed = 0
        self.failing: set[int] = set()
        self.fails = lambda width, epochs: False
        self.unbuildable: set[int] = set()
        self.unlearnable = 0.0  # percent
        self.seconds = lambda width: 1.0  # an epoch
        self.luck = lambda width, seed: 0.0  # points
        self.busy = lambda: 1.0  # how many times as long all calls take
        self.seeds: list[tuple[int, int]] = []  # of final runs
        self.stop_at = None
        monkeypatch.setattr(drawn, "time_untrained", self.time)
        monkeypatch.setattr(finals.run, "run", self.run)
        monkeypatch.setattr(drawn, "composed", self.compose)
        monkeypatch.setattr(finals, "composed", self.compose)
        monkeypatch.setattr(front, "train", partial(self.train_checked, tested=False))
        monkeypatch.setattr(finals, "train", partial(self.train_checked, tested=True))
        monkeypatch.setattr(front, "checked", self.check)

    def check(self, shared, space, lengths):
        """As in earnest, but once for settings that differ in the outputs alone."""
        outputs = [one for one in shared.given if one.startswith("outputs=")]
        others = replace(shared, given=[one for one in shared.given if one not in outputs])
        key = str([others, space, lengths])
        if key not in CHECKED:
            CHECKED[key] = checked(shared, space, lengths)
        self.base, ends = CHECKED[key]
        config = self.base.config | {"outputs": outputs[0].partition("=")[2].strip("'")}
        return replace(self.base, config=config), ends

    def compose(self, job_overrides):
        """Set the channels alone."""
        (overrides,) = job_overrides[:1]
        said = dict(override.split("=", 1) for override in overrides)
        channels = ast.literal_eval(said["model.channels"])
        if channels[0] in self.unbuildable:
            raise UserError(f"model: no such network, {channels[0]}", "model")
        config = self.base.config | {"model": self.base.config["model"] | {"channels": channels}}
        return [replace(self.base, config=config, overrides=tuple(one)) for one in job_overrides]

    def time(self, sources, spec, device, outputs):
        self.timed += len(sources)
        found = {}
        for number, source in sources.items():
            width = source.candidate.model["channels"][0]
            ms = width / 100 * self.busy()
            floor_ms = 0.02 * self.busy()
            found[number] = Timed(width / 10, None, None, ms, f"b{self.timed}", floor_ms)
        return found

    def train_checked(self, overrides, searched, tested):
        assert ("test=false" in overrides) != tested
        return self.train(overrides, searched)

    def train(self, overrides, searched):
        said = dict(override.split("=", 1) for override in overrides)
        first, epochs = ast.literal_eval(said["model.channels"])[0], int(said["epochs"])
        if len(self.trained) == self.stop_at:
            self.stop_at = None
            raise KeyboardInterrupt
        if (first, epochs) not in self.trained:  # a finished run is not trained again
            self.trained.append((first, epochs))
        if "seed" in said:
            self.seeds.append((first, int(said["seed"])))
        if first in self.failing or self.fails(first, epochs):
            return Outcome("crashed", f"a reason, {first}", None)
        luck = self.luck(first, int(said["seed"])) if "seed" in said else 0.0
        val_acc = 100 - max(self.unlearnable, errors(first, epochs)) + luck
        return Trained(
            name=f"r{first}-{epochs}", val_acc=val_acc, val_images=100_000,
            train_seconds=self.seconds(first) * epochs,
        )  # fmt: skip

    def run(self, jobs, executor):
        self.final += [" ".join(job.overrides) for job in jobs]


def dies_in_work(monkeypatch):
    """Let an error that ends work be a SIGKILL: nobody writes down that it was left."""
    note = Claim._note

    def noted(self, killed):
        if sys.exc_info() == (None, None, None):
            note(self, killed)

    monkeypatch.setattr(Claim, "_note", noted)


@pytest.fixture
def search(outputs, call):
    def run(*overrides):
        ended = call(script.main, f"outputs={outputs}", *SMALL, *overrides)
        return ended.status, ended.out, ended.err

    return run


@pytest.fixture
def pretending(monkeypatch):
    return Pretending(monkeypatch)


def of_epochs(trained, epochs):
    return {width for width, of_it in trained if of_it == epochs}


def test_short_runs_for_many_and_longer_ones_for_the_best(search, pretending, outputs):
    status, out, err = search("n_trials=20", "targets=[]")
    assert status == 0, err
    assert pretending.timed == 20
    by_rung = [of_epochs(pretending.trained, one) for one in (1, 2, 4)]
    assert len(by_rung[0]) == 20
    assert len(by_rung[1]) <= 10
    assert 1 <= len(by_rung[2]) <= len(by_rung[1]) / 2
    assert by_rung[2] <= by_rung[1] <= by_rung[0]
    # Nothing is better in both, so the most accurate is trained longest.
    assert max(by_rung[0]) in by_rung[2]
    assert "front after 4 epochs:" in out
    assert not pretending.final
    (folder,) = (outputs / "searches").iterdir()
    assert (folder / "front.png").stat().st_size > 10_000
    assert not [*folder.glob("trial-*")]


def test_what_may_reach_a_target_is_trained_longer(search, pretending):
    """The fastest networks have no chance, though none is better in both."""
    status, _, err = search("n_trials=20", "targets=[85]", "final_minutes=0.3")
    assert status == 0, err
    by_rung = [of_epochs(pretending.trained, one) for one in (1, 2, 4)]
    hopeless = {width for width in by_rung[0] if width < 20}
    assert hopeless
    assert by_rung[1]
    assert hopeless.isdisjoint(by_rung[1])


def test_the_fastest_of_each_target_is_trained_with_seeds(search, pretending):
    """By what a final run of a minute gives, which is guessed; hardly any other is tried."""
    status, out, err = search("n_trials=20")
    assert status == 0, err
    drawn = sorted(of_epochs(pretending.trained, 1))
    chosen = {next(w for w in drawn if errors(w, 60) <= 100 - one) for one in (60, 85)}
    tried = of_epochs(pretending.trained, 60)
    assert chosen <= tried
    assert len(tried) <= len(chosen) + 2
    assert len(pretending.final) == 2 * len(chosen)
    for width in chosen:
        of_it = [line for line in pretending.final if f"model.channels=[{width}," in line]
        assert [line.split()[-1] for line in of_it] == ["seed=0", "seed=1"]
        assert all("epochs=60 " in line for line in of_it)  # a minute of one second each
        assert all("benchmark.variants=[onnx]" in line for line in of_it)
    assert "no network reaches 100 %" in out


def test_the_mean_of_all_seeds_reaches_a_target_or_not(search, pretending):
    """Where the second one is unlucky, the next network is tried."""
    pretending.luck = lambda width, seed: -20.0 if width < 50 and seed == 1 else 0.0
    status, _, err = search("n_trials=20", "targets=[80]", "final_seeds=[0,1]")
    assert status == 0, err
    assert {width for width, seed in pretending.seeds if width < 50 and seed == 1}
    assert {line.split("[")[1].split(",")[0] for line in pretending.final} == {
        str(min(width for width, _ in pretending.seeds if width >= 50))
    }
    # Whoever misses it with the first seed is not trained with the others.
    pretending.seeds.clear()
    pretending.luck = lambda width, seed: -20.0 if seed == 0 else 0.0
    assert search("n_trials=20", "targets=[80]", "final_seeds=[0,1]", "rungs=[1,2]")[0] == 0
    assert pretending.seeds
    assert {seed for _, seed in pretending.seeds} == {0}


def test_no_network_takes_longer_than_a_final_run(search, pretending):
    """Slow ones get fewer epochs, and are not trained for rungs of as many."""
    pretending.seconds = lambda width: width / 5
    status, _, err = search("n_trials=20", "final_minutes=0.2", "targets=[20,60,80]")
    assert status == 0, err
    assert pretending.final
    for line in pretending.final:
        said = dict(one.split("=", 1) for one in line.split())
        width = ast.literal_eval(said["model.channels"])[0]
        assert int(said["epochs"]) == max(1, int(12 / (width / 5)))
    longer = [(width, epochs) for width, epochs in pretending.trained if epochs in (2, 4)]
    assert longer
    assert all(epochs < int(12 / (width / 5)) for width, epochs in longer)


def test_without_seeds_there_are_no_final_runs(search, pretending):
    status, out, err = search("n_trials=9", "final_seeds=[]")
    assert status == 0, err
    assert not pretending.final
    assert "front after" in out


def test_final_runs_of_another_length_are_others(search, pretending):
    assert search("n_trials=9", "targets=[60]")[0] == 0
    assert search("n_trials=9", "targets=[60]", "final_minutes=2")[0] == 0
    assert [line.split("epochs=")[1].split()[0] for line in pretending.final] == (
        ["60", "60", "120", "120"]
    )


def test_final_runs_are_made_though_none_was_in_the_last_rung(search, pretending):
    status, _, err = search("n_trials=20", f"hours={3 / 3600}", "targets=[60]")
    assert status == 0, err
    assert not of_epochs(pretending.trained, 4)
    assert len(pretending.final) == 2


def test_a_guess_that_was_too_bold_makes_later_ones_less_so(search, pretending):
    """All end with as many errors, so after the first one no other is tried for as few."""
    pretending.unlearnable = 20.0
    status, out, err = search("n_trials=20", "targets=[85]", "rungs=[1,2]")
    assert status == 0, err
    tried = [width for width, epochs in pretending.trained if epochs == 60]
    longest = [width for width, epochs in pretending.trained if epochs == 2]
    assert 1 <= len(tried) < len(longest)
    assert pretending.final == []
    assert "no network reaches 85 %" in out


def test_networks_that_are_too_slow_are_not_trained(search, pretending):
    status, _, err = search("n_trials=20", "max_ms=0.4")
    assert status == 0, err
    assert pretending.timed == 20
    assert max(width for width, _ in pretending.trained) <= 40


def test_a_batch_of_slow_networks_does_not_end_it(search, pretending):
    status, _, err = search("n_trials=24", "max_ms=0.03")
    assert status == 1
    assert err.endswith("no network could be trained; 24 are above max_ms=0.03\n")
    assert pretending.timed == 24
    assert not pretending.trained


def test_networks_that_were_timed_beside_other_work_are_not_too_slow_for_it(search, pretending):
    """Relative latency tells how long they take when the machine is quiet."""
    pretending.busy = lambda: 1.0 if 8 < pretending.timed <= 16 else 3.0  # in the second batch
    assert search("n_trials=20", "max_ms=0.5", "targets=[]")[0] == 0
    assert 40 <= max(width for width, _ in pretending.trained) <= 50


def test_another_limit_counts_for_what_is_known(search, pretending):
    """A lower one for longer runs, a higher one for those that were too slow."""
    assert search("n_trials=20", "max_ms=0.4", "targets=[60]")[0] == 0
    before = [*pretending.trained]
    assert search("n_trials=20", "max_ms=0.1", "targets=[80]")[0] == 0
    assert not [width for width, _ in pretending.trained[len(before) :] if width > 10]
    assert max(width for width, _ in before) > 10
    status, out, err = search("n_trials=20", "targets=[85]")
    assert status == 0, err
    assert len(of_epochs(pretending.trained, 1)) == pretending.timed == 20
    assert "0 too slow" not in out.splitlines()[0]
    assert max(width for width, epochs in pretending.trained if epochs == 60) > 40


def test_other_seeds_of_final_runs_are_trained_beside_those_there_are(search, pretending):
    assert search("n_trials=9", "targets=[60]", "final_seeds=[1]")[0] == 0
    status, _, err = search("n_trials=9", "targets=[60]", "final_seeds=[0,1,2]")
    assert status == 0, err
    assert [line.split()[-1] for line in pretending.final] == [
        "seed=1",
        "seed=0",
        "seed=1",
        "seed=2",
    ]


def test_a_lower_limit_still_lets_a_third_of_the_fast_ones_go_on(search, pretending):
    settings = "n_trials=20", "rungs=[1,2]", "targets=[]"
    assert search(*settings)[0] == 0
    widths = sorted({width for width, epochs in pretending.trained})
    longer = {width for width, epochs in pretending.trained if epochs == 2}
    limit = widths[len(widths) // 2]
    status, _, err = search(*settings, f"max_ms={limit / 100}")
    assert status == 0, err
    now = {width for width, epochs in pretending.trained if epochs == 2 and width <= limit}
    assert len(now) >= max(1, len([width for width in widths if width <= limit]) // 2)
    assert now >= {width for width in longer if width <= limit}


def test_a_network_that_fails_in_the_end_takes_no_other_one_s_turn(search, pretending):
    """None is guessed to reach the target, so the best one is tried; where it crashes, the next."""
    widest = []

    def failing(width, epochs):
        if epochs > 4 and not widest:
            widest.append(width)
        return epochs > 4 and width in widest

    pretending.fails = failing
    search("n_trials=20", "targets=[81]")
    tried = {width for width, epochs in pretending.trained if epochs > 4}
    assert len(tried) > 1


def test_other_hardware_makes_another_study(search, pretending, monkeypatch, outputs):
    for name in ("zen", "xeon", "zen"):
        monkeypatch.setattr(front, "hardware_slug", lambda device, name=name: name)
        assert search("n_trials=4")[0] == 0
    assert len([*(outputs / "searches").iterdir()]) == 2


def test_another_engine_makes_another_study(search, pretending, monkeypatch, outputs):
    """A network is timed once: what another release would give is not known."""
    for version in ("1.0", "1.1", "1.0"):
        versions = {"onnxruntime": version}
        monkeypatch.setattr(front.registry, "engines", lambda variant, found=versions: found)
        assert search("n_trials=4")[0] == 0
    assert len([*(outputs / "searches").iterdir()]) == 2


def test_one_variant_by_another_name_is_one_study(search, pretending, outputs):
    for name in ("fused+channels_last", "channels_last+fused"):
        assert search("n_trials=4", f"variant={name}")[0] == 0
    assert len([*(outputs / "searches").iterdir()]) == 1


def test_without_settings_of_the_search_itself(search, pretending):
    assert search("n_trials=4", "base=null")[0] == 0


def test_it_says_what_was_left_and_what_is_best(search, pretending):
    status, out, err = search("n_trials=20", "max_ms=0.8", "targets=[60,99]")
    assert status == 0, err
    last = next(line for line in out.splitlines()[::-1] if "of training left" in line)
    slow = 20 - len(of_epochs(pretending.trained, 1))
    assert slow
    left = int(last.split("; ")[2].split()[0])
    assert slow <= left < 20
    (fastest,) = {line.split("[")[1].split(",")[0] for line in pretending.final}
    assert "60 %: network " in last
    assert f", {int(fastest) / 10:.3g}; 99 %: none yet" in last


def test_the_plot_is_drawn_when_it_is_stopped_and_after_the_final_runs(
    search, pretending, outputs, monkeypatch
):
    pretending.stop_at = 3
    assert search("n_trials=9")[0] == 130
    (folder,) = (outputs / "searches").iterdir()
    before = (folder / "front.svg").read_text()
    assert "after 1 epoch" in before
    assert "final runs" not in before
    assert search("n_trials=9")[0] == 0
    assert "final runs" in (folder / "front.svg").read_text()


def test_a_searchs_own_final_runs_are_no_other_runs(search, pretending, monkeypatch):
    """Though they are measured in the same variant, as others are."""
    mine = []
    monkeypatch.setattr(front_shown, "_others", lambda *arguments: mine.append(arguments[-1]) or [])
    assert search("n_trials=9", "targets=[60]")[0] == 0
    trained = {f"r{width}-{epochs}" for width, epochs in pretending.trained}
    assert any(epochs == 60 for _, epochs in pretending.trained)
    assert mine == [trained]


def test_rows_of_other_hardware_are_not_drawn(tmp_path):
    """Their latencies are of another machine."""
    for name, hardware in (("a-1", "zen"), ("b-1", "xeon")):
        run = replace(RUN, name=name, id=name, val_acc=50.0)
        place(tmp_path, run, replace(MEASUREMENT, run=name, hardware=hardware))
    others = front_shown._others(tmp_path, ("zen", MEASUREMENT.variant, MEASUREMENT.threads), set())
    assert [one.name for one in others] == ["a-1"]


def test_what_can_not_be_built_is_not_counted(search, pretending):
    pretending.unbuildable = {*range(0, 100, 2)}
    status, out, err = search("n_trials=12")
    assert status == 0, err
    assert pretending.timed == 12
    assert "no such network" in out
    assert all(width % 2 for width, _ in pretending.trained)


def test_where_no_network_can_be_built_it_says_so(search, pretending, monkeypatch):
    monkeypatch.setattr(drawn, "IN_VAIN", 10)
    pretending.unbuildable = {*range(100)}
    status, _, err = search("n_trials=12")
    assert status == 2
    assert err.startswith("error: space: no network can be drawn; the last of 10: model: no such")


def test_the_same_network_is_not_trained_twice(search, pretending, monkeypatch):
    """In a space of three networks there are no more."""
    monkeypatch.setattr(drawn, "IN_VAIN", 10)
    status, out, err = search("n_trials=12", "space.model.channels.first.high=6")
    assert status == 0, err
    assert pretending.timed == len(of_epochs(pretending.trained, 1)) <= 3
    assert "the same network as" in out
    assert "the last 10 draws gave no new network" in out


def test_a_network_that_kills_the_search_is_not_first_for_ever(search, pretending, monkeypatch):
    """As where too little memory ends it: a killed process has no time to write that it left."""
    tried = []

    def killed(overrides, searched):
        tried.append([one for one in overrides if one.startswith("model.channels=")])
        raise KeyboardInterrupt

    monkeypatch.setattr(front, "train", killed)
    dies_in_work(monkeypatch)
    for _ in range(KILLED_TOO_OFTEN + 1):
        assert search("n_trials=4")[0] == 130
    assert tried[0] == tried[KILLED_TOO_OFTEN - 1] != tried[KILLED_TOO_OFTEN]


def test_a_promotion_that_kills_the_search_is_given_up(search, pretending, monkeypatch, outputs):
    tried = []

    def train(overrides, searched):
        if "epochs=1" not in overrides:
            tried.append([one for one in overrides if one.startswith("model.channels=")])
            raise KeyboardInterrupt
        return pretending.train(overrides, searched)

    monkeypatch.setattr(front, "train", train)
    dies_in_work(monkeypatch)
    for _ in range(KILLED_TOO_OFTEN + 1):
        assert search("n_trials=9")[0] == 130
    assert tried[0] == tried[KILLED_TOO_OFTEN - 1] != tried[KILLED_TOO_OFTEN]
    monkeypatch.setattr(front, "train", pretending.train)
    status, _, err = search("n_trials=9")
    assert status == 0, err
    assert tried[0][0].partition("=")[2] not in {
        f"[{width},{width}]" for width, epochs in pretending.trained if epochs > 1
    }
    assert not [*outputs.glob("searches/*/trial-*")]


def test_a_final_run_that_kills_the_search_is_given_up(search, pretending, monkeypatch):
    tried = []

    def train(overrides, searched):
        tried.append([one for one in overrides if one.startswith("model.channels=")])
        raise KeyboardInterrupt

    monkeypatch.setattr(finals, "train", train)
    dies_in_work(monkeypatch)
    for _ in range(KILLED_TOO_OFTEN + 1):
        assert search("n_trials=9", "targets=[60]")[0] == 130
    assert tried[0] == tried[KILLED_TOO_OFTEN - 1] != tried[KILLED_TOO_OFTEN]


def test_a_network_that_kills_the_search_when_it_is_timed_is_given_up(
    search, pretending, monkeypatch
):
    """All that were timed with it are timed again, each by itself."""
    batches = []

    def time(sources, spec, device, outputs):
        batches.append([*sources])
        if 2 in sources:
            raise KeyboardInterrupt
        return pretending.time(sources, spec, device, outputs)

    monkeypatch.setattr(drawn, "time_untrained", time)
    dies_in_work(monkeypatch)
    for _ in range(KILLED_TOO_OFTEN):
        assert search("n_trials=4")[0] == 130
    status, _, err = search("n_trials=4")
    assert status == 0, err
    alone = [batch for batch in batches if len(batch) == 1]
    assert batches[0] == [0, 1, 2, 3]
    assert alone.count([2]) == KILLED_TOO_OFTEN - 1
    assert [3] in alone
    assert len({width for width, _ in pretending.trained}) == 3


def test_final_runs_are_chosen_when_all_networks_are_trained(
    search, pretending, study, outputs, monkeypatch
):
    """A process that has nothing more to do waits for the others."""
    assert search("n_trials=9")[0] == 0
    before = [*pretending.final]
    assert before
    (folder,) = (outputs / "searches").iterdir()
    elsewhere = Claim.make(folder / "trial-3-rung-1.lock")
    finals_then = []

    def ends(seconds):
        finals_then.append(len(pretending.final))
        elsewhere.end()

    monkeypatch.setattr(locks.time, "sleep", ends)
    status, out, err = search("n_trials=9")
    assert status == 0, err
    assert "other processes are at work on 1 network" in out
    assert "waiting for another process, which is at trial-3-rung-1" in out
    assert finals_then == [len(before)]
    assert len(pretending.final) == 2 * len(before)
    assert not [*folder.glob("trial-*")]


@pytest.fixture
def beside(search, pretending, outputs, monkeypatch):
    """Searches while another process is at a network's final run with seed 0.

    Returns the seeds of final runs before the other one has ended and after it, and the network.
    """

    def make(*settings, ending):
        settings = "n_trials=20", *settings
        assert search(*settings, "final_seeds=[7]")[0] == 0
        width = min(width for width, _ in pretending.seeds if errors(width, 60) <= 20)
        pretending.seeds.clear()
        (folder,) = (outputs / "searches").iterdir()
        with Study(outputs, folder.name, ["minimize", "maximize"], None, lambda _: None) as study:
            found = Found(study, [1, 2, 4])
            number = next(
                number
                for number in found.latencies()
                if f"[{width}," in " ".join(found.overrides(number))
            )
            elsewhere, before = study.claim(f"final-{number}-60-0"), []

            def ends(seconds):
                before.extend(pretending.seeds)
                pretending.seeds.clear()
                if ending is not None:
                    found.note_final(number, 60, 0, ending)
                    elsewhere.end()
                elsewhere.release()

            monkeypatch.setattr(locks.time, "sleep", ends)
            status, _, err = search(*settings, "final_seeds=[0,1,2]")
            assert status == 0, err
        return before, pretending.seeds, width

    return make


def ended(val_acc):
    return Trained(name="elsewhere", val_acc=val_acc, val_images=100_000, train_seconds=60.0)


def test_a_final_run_of_another_process_is_waited_for(beside):
    before, after, width = beside("targets=[80]", ending=ended(81.0))
    assert not before
    assert after == [(width, 1), (width, 2)]


def test_what_another_process_has_left_is_taken_up(beside):
    before, after, width = beside("targets=[80]", ending=None)
    assert not before
    assert after == [(width, 0), (width, 1), (width, 2)]


def test_another_target_is_trained_for_meanwhile(beside):
    before, after, width = beside("targets=[80,85]", ending=ended(81.0))
    assert [seed for _, seed in before] == [0, 1, 2]
    assert {other for other, _ in before}.isdisjoint({width})
    assert after == [(width, 1), (width, 2)]


def test_a_network_that_misses_its_target_elsewhere_is_left(beside):
    before, after, width = beside("targets=[80]", ending=ended(70.0))
    assert not before
    assert after
    assert all(other != width for other, _ in after)


def test_what_was_timed_on_a_busy_machine_refuses_no_limit(search, pretending):
    """Its floor looked three times as high: as soon as a quieter batch is timed, it isn't."""
    pretending.busy = lambda: 3.0
    assert search("n_trials=8", "max_ms=9", "targets=[]")[0] == 0
    pretending.busy = lambda: 1.0
    status, _, err = search("n_trials=16", "max_ms=0.05", "targets=[]")
    assert status != 2, err
    assert pretending.timed == 16


def test_one_networks_noise_does_not_move_the_limit():
    """What the quietest ResNet-8 took is a median over the networks of a benchmark."""
    study = SimpleNamespace(
        trials=[
            SimpleNamespace(number=n, user_attrs={LATENCY: asdict(Timed(rel, None, None, ms, b))})
            for n, (rel, ms, b) in enumerate(
                [(0.5, 0.5, "a"), (0.6, 0.6, "a"), (0.9, 0.9, "a"), (0.8, 0.45, "a"), (1, 3, "b")]
            )
        ],
        optuna=SimpleNamespace(user_attrs={}),
    )
    assert Found(study, [1]).read().too_slow(0.55) == {1, 2, 3, 4}


@pytest.mark.parametrize("before", [(), ("max_ms=1",)])
def test_a_limit_below_the_floor_is_refused(before, search, pretending):
    """Also where all networks were timed by an earlier command."""
    if before:
        assert search("n_trials=4", *before)[0] == 0
    trained = [*pretending.trained]
    status, _, err = search("n_trials=4", "max_ms=0.01")
    assert status == 2
    assert err == ("error: max_ms=0.01: must be above 0.02, what a call of onnx takes by itself\n")
    assert pretending.trained == trained


def test_it_goes_on_where_it_was_stopped(search, pretending):
    """What is measured or trained is not again, but for the run that was under way."""
    pretending.stop_at = 5
    assert search("n_trials=12")[0] == 130
    before = [*pretending.trained]
    status, out, err = search("n_trials=12")
    assert status == 0, err
    assert "trained" in out.splitlines()[0]
    assert pretending.timed == 12
    assert not {*before} & {*pretending.trained[len(before) :]}
    whole = len(pretending.trained)
    assert search("n_trials=12")[0] == 0
    assert len(pretending.trained) == whole


def test_a_process_that_others_leave_nothing_to_waits_for_them(
    search, pretending, outputs, monkeypatch
):
    """And takes up what they leave."""
    pretending.stop_at = 0
    assert search("n_trials=3")[0] == 130
    (folder,) = (outputs / "searches").iterdir()
    elsewhere = ExitStack()
    for number in range(3):
        elsewhere.enter_context(Claim.make(folder / f"trial-{number}.lock"))
    before = []

    def leave(seconds):
        before.append([*pretending.trained])
        elsewhere.close()

    monkeypatch.setattr(locks.time, "sleep", leave)
    status, out, err = search("n_trials=3")
    assert status == 0, err
    assert "other processes are at work on 3 networks" in out
    assert before == [[]]
    assert len(of_epochs(pretending.trained, 1)) == 3


def test_half_a_line_of_the_journal_is_no_end(search, pretending, outputs):
    """As a full disk leaves it, or a kill."""
    assert search("n_trials=4")[0] == 0
    (journal,) = outputs.glob("searches/*/journal.log")
    journal.write_bytes(journal.read_bytes()[:-10])
    for number in (5, 6):
        status, _, err = search(f"n_trials={number}")
        assert status == 0, err
    assert pretending.timed == 6


def test_training_that_fails_takes_its_time_too(search, pretending, monkeypatch):
    clock = count(step=3600)
    monkeypatch.setattr(front.time, "monotonic", lambda: next(clock))
    pretending.failing = {*range(100)}
    assert search("n_trials=9", "hours=1.5")[0] == 1
    assert len(pretending.trained) == 2


def test_training_ends_with_its_hours(search, pretending):
    status, out, err = search("n_trials=20", f"hours={3 / 3600}")
    assert status == 0, err
    assert sum(epochs for _, epochs in pretending.trained if epochs <= 4) <= 3 + 4
    assert "0 s of training left" in out


def test_what_can_not_be_trained_is_left(search, pretending):
    pretending.failing = {*range(0, 100, 2)}
    status, out, err = search("n_trials=16")
    assert status == 0, err
    assert all(epochs == 1 for width, epochs in pretending.trained if width % 2 == 0)
    assert "a reason" in out
    pretending.failing = {*range(100)}
    status, _, err = search("n_trials=4", "seed=5")
    assert status == 1
    assert err.endswith("no network could be trained\n")


def test_a_variant_that_is_not_to_be_had_ends_it(search, pretending, monkeypatch):
    def unsupported(*_):
        raise UserError("variant=onnx: no such engine", "variant")

    monkeypatch.setattr(drawn, "time_untrained", unsupported)
    status, _, err = search("n_trials=4")
    assert (status, err) == (2, "error: variant=onnx: no such engine\n")
    assert not pretending.trained


BAD = {
    "variant=null": "error: variant=null: must be given",
    "threads=null": "error: threads=null: must be given",
    "space.model.channels.first.low=0": "error: space.model.channels=",
    "space.model.channels.length.high=9": "error: model.channels=[4, 4, 4, 4, 4",
    "space.model.channels.growth=[]": "error: space.model.channels=",
    "+space.model.chanels={low: 1, high: 2}": "error: model.chanels: no such key; did you mean",
    "+space.model.stem_stride={choices: [9]}": "error: model.stem_stride=9: must be",
    "variant=onx": "error: variant=onx: no such",
    "variant=onnx+fp16": "error: variant=onnx+fp16: must be onnx without fp16",
    "threads=0": "error: threads=0: must be a number from 1 to",
    "threads=4096": "error: threads=4096: must be a number from 1 to",
    "rungs=[4,2]": "error: rungs=[4, 2]: must be a list of rising numbers of epochs",
    "rungs=[]": "error: rungs=[]: must be",
    "hours=0": "error: hours=0.0: must be a number above 0",
    "max_ms=-1": "error: max_ms=-1.0: must be",
    "targets=[101]": "error: targets=[101.0]: must be",
    "epochs=10": "error: epochs=10: must be left out: rungs and final_minutes say how long",
    "rerun=true": "error: rerun=true: must be left out: what is trained is not trained again",
    "+trainer.check_val_every_n_epoch=2": "error: trainer.check_val_every_n_epoch=2: must be",
}


@pytest.mark.parametrize("override", BAD)
def test_mistakes(override, search, pretending, outputs):
    status, _, err = search(override)
    assert status == 2
    assert err.startswith(BAD[override]), err
    assert not pretending.trained
    assert not outputs.exists()


@pytest.mark.parametrize(
    "entry", ["depth={choices: [2]}", "depth={choices: [2,2]}", "depth={choices: [3, 3]}"]
)
def test_a_space_of_one_network_is_refused(entry, search, pretending):
    status, _, err = search("~space.model.channels", f"+space.model.{entry}")
    assert status == 2
    assert "must be more than one network" in err


def test_a_space_of_ends_that_are_one_network_is_refused(search, pretending):
    depth, smoothing = "model.depth={choices: [2]}", "label_smoothing={choices: [0, 0.1]}"
    status, _, err = search("~space.model.channels", f"+space.{depth}", f"+space.{smoothing}")
    assert status == 2
    assert "must be more than one network" in err


def test_a_space_of_networks_that_are_built_alike_is_refused(search, pretending):
    kernel = "+space.model.stem_kernel={choices: [2,3]}"
    status, _, err = search("model.stem=null", "~space.model.channels", kernel)
    assert status == 2
    assert "must be more than one network" in err


# --- What all training runs share -------------------------------------------------------------


RESNETS = (
    "model=resnet_cifar",
    *(f"~space.model.{key}" for key in SHIPPED),
    "+space.model.depth={choices: [8, 14]}",
    "+space.model.width={low: 0.5, high: 1.0}",
)


@pytest.mark.parametrize(
    ("overrides", "networks"),
    [
        ((), {"cifarnet"}),
        (
            (
                "+space.model.choices=[cifarnet,repvgg]",
                *(f"~space.model.{key}" for key in SHIPPED if key != "stem_stride"),
            ),
            {"cifarnet", "repvgg"},
        ),
        (RESNETS, {"resnet_cifar"}),
    ],
)
def test_the_shipped_files_fit_together(overrides, networks, outputs, call, monkeypatch):
    """Whatever network is drawn: of the search's own settings those count that it has."""
    models = []

    def draw(search):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
        while len(models) < 6:
            one = space.draw(study.ask(), search.space)
            with suppress(UserError):  # such as whiten without a stem
                (job,) = composed([search.shared.overrides(*one, "epochs=1")])
                models.append(job.config["model"])

    monkeypatch.setattr(front._Search, "run", draw)
    ended = call(script.main, "search=front", "data=digits", f"outputs={outputs}", *overrides)
    assert ended.status == 0, ended.err
    assert {one["_target_"].rpartition(".")[2] for one in models} == networks
    assert {one["bn_momentum"] for one in models} == {0.1}


def test_what_a_network_is_is_told_by_what_is_built(search, monkeypatch):
    found = {}

    def tell(inner):
        for settings in (
            "stem=null whiten=false stem_kernel=2", "stem=null whiten=false stem_kernel=3",
            "stem=12 whiten=false", "stem=12 whiten=true", "scale=1.0", "scale=0.1",
            "resolution=24", "resolution=16", "dirac=false", "bn_momentum=0.2", "pool=avg",
        ):  # fmt: skip
            model = [f"model.{one}" for one in settings.split()]
            (job,) = composed([inner.shared.overrides(*model, "epochs=1")])
            found[settings] = drawn.network_of(job)
        (job,) = composed([inner.shared.overrides(*model, "epochs=1", "optim.lr=0.123")])
        found["lr"] = drawn.network_of(job)

    monkeypatch.setattr(front._Search, "run", tell)
    status, _, err = search()
    assert status == 0, err
    first, second, *others = found.values()
    assert first == second
    assert len({first, *others}) == len(others) + 1


# --- Spaces ---------------------------------------------------------------------------------


def test_keys_of_an_option_that_was_not_drawn_are_left_out():
    found = space.flatten_space(
        {
            "model": {
                "choices": ["cifarnet", "repvgg"],
                "dropout": {"low": 0.0, "high": 0.5},  # repvgg's
                "stem_kernel": {"choices": [2, 3]},  # cifarnet's
                "bn_momentum": {"low": 0.05, "high": 0.5},
            }
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    seen = {
        tuple(one.partition("=")[0] for one in space.draw(study.ask(), found)) for _ in range(20)
    }
    assert seen == {
        ("model", "model.stem_kernel", "model.bn_momentum"),
        ("model", "model.dropout", "model.bn_momentum"),
    }
    assert ["model=repvgg", "model.dropout=0.5"] in space.ends(found)
    assert ["model=cifarnet", "model.dropout=0.5"] not in space.ends(found)


def test_lists_grow_by_their_factors_in_steps():
    found = space.flatten_space(
        {"model": {"channels": {
            "length": {"low": 1, "high": 4}, "first": {"low": 8, "high": 24, "step": 8},
            "growth": [1, 1.5, 2],
        }}}
    )  # fmt: skip
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    lengths = set()
    for _ in range(60):
        (override,) = space.draw(study.ask(), found)
        channels = ast.literal_eval(override.partition("=")[2])
        lengths.add(len(channels))
        assert channels[0] in (8, 16, 24)
        assert all(one % 8 == 0 for one in channels)
        assert all(a <= b <= 2 * a for a, b in pairwise(channels))
    assert lengths == {1, 2, 3, 4}
    assert ["model.channels=[24,48,96,192]"] in space.ends(found)


# --- Processes on one study -------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    def make(storage=None, outputs=tmp_path / "outputs"):
        sampler = optuna.samplers.RandomSampler
        return Study(outputs, "s", ["maximize"], storage, lambda number: sampler(number))

    return make


def test_no_trial_is_done_twice(study):
    with study() as one, study() as other:
        taken = [one.take(3), other.take(3), one.take(3)]
        assert sorted(trial.number for trial in taken) == [0, 1, 2]
        assert other.take(3) is None
        one.tell(taken[0], 1.0)
        other.tell(taken[1], 2.0)
        assert one.ended == other.ended == 2


def test_a_trial_that_was_left_is_taken_up(study):
    with study() as one:
        left = one.take(5)
        value = left.suggest_float("x", 0, 1)
        one.tell(one.take(5), 1.0)
    with study() as other:
        taken = other.take(5)
        assert taken.number == left.number
        assert taken.suggest_float("x", 0, 1) == value
        assert other.take(5).number == 2


def test_a_trial_that_kills_its_process_has_failed(study, monkeypatch):
    dies_in_work(monkeypatch)
    for _ in range(KILLED_TOO_OFTEN):
        with study() as one, suppress(KeyboardInterrupt):
            taken = one.take(1)
            assert taken.number == 0
            with one.claims[0].work():
                raise KeyboardInterrupt
    with study() as one:
        assert one.take(1) is None
        assert one.ended == 1


def test_outputs_that_share_a_database_leave_each_other_s_trials(study, tmp_path):
    storage = f"sqlite:///{tmp_path}/shared.db"
    with study(storage) as one:
        one.take(5)
    with study(storage, tmp_path / "elsewhere") as other:
        assert other.take(5).number == 1
    with study(storage) as one:
        assert one.take(5).number == 0


@pytest.mark.parametrize("storage", ["nonsense", "mysql+nothing://me:secret@host/x"])
def test_a_storage_that_is_none(study, storage):
    with pytest.raises(UserError, match=r"^storage=.*: must be a database") as caught:
        study(storage)
    assert "secret" not in str(caught.value)


def test_a_database_that_fails_is_one_line(study, tmp_path):
    path = tmp_path / "shared.db"

    def take():
        with study(f"sqlite:///{path}") as one, sqlite3.connect(path) as database:
            database.execute("DROP TABLE trials")
            database.commit()
            one.take(1)

    with pytest.raises(RunFailed, match=r"^the study can't be read or written: OperationalError: "):
        take()


def test_the_rules_of_a_front_s_keys():
    check({"rungs": [1, 2], "final_seeds": [], "targets": []})
    with pytest.raises(UserError):
        check({"rungs": [1, 1]})
