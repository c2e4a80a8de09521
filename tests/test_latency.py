import gc
import itertools
import math
import statistics
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.utils.benchmark
from hypothesis import given
from hypothesis import strategies as st

from cifar_lightning import models
from cifar_lightning.benchmark.memory import Memory
from cifar_lightning.benchmark.rounds import warm_up
from cifar_lightning.benchmark.timing import Stopwatch, clock_of
from cifar_lightning.config.protocols import PROTOCOLS
from cifar_lightning.runs.blocks import Block
from cifar_lightning.runs.latency import LatencyStats
from cifar_lightning.system.garbage import no_garbage_collection

FULL = PROTOCOLS["full"]
CPU = torch.device("cpu")


def test_statistics_by_hand():
    stats = LatencyStats.from_samples([4.0, 1.0, 3.0, 2.0])
    assert (stats.n, stats.mean_ms, stats.min_ms, stats.p50_ms, stats.max_ms) == (4, 2.5, 1, 2, 4)
    assert stats.std_ms == pytest.approx(math.sqrt(5 / 3))
    assert stats.p90_ms is stats.p95_ms is stats.p99_ms is None


@given(st.lists(st.floats(0.01, 1000), min_size=2, max_size=900), st.floats(0.1, 3))
def test_statistics_are_numpys(values, skew):
    samples = [value**skew for value in values]
    stats = LatencyStats.from_samples(samples)
    assert stats.mean_ms == pytest.approx(np.mean(samples))
    assert stats.std_ms == pytest.approx(np.std(samples, ddof=1), abs=1e-9 * max(samples))
    for percent, least in ((50, 1), (90, 65), (95, 130), (99, 662)):
        expected = np.percentile(samples, percent, method="inverted_cdf")
        found = getattr(stats, f"p{percent}_ms")
        assert found == (expected if len(samples) >= least else None)


def test_p95_of_whole_hundreds_is_the_rank_itself():
    # 0.95 * n in floating point is just above the whole number for some n.
    for n in range(140, 3000, 20):
        stats = LatencyStats.from_samples([float(i) for i in range(1, n + 1)])
        assert stats.p95_ms == n * 95 // 100


def test_one_sample_is_too_few():
    with pytest.raises(ValueError, match="1 samples"):
        LatencyStats.from_samples([1.0])


class Stream:
    """Synthetic durations with a clock that they move on."""

    def __init__(self, make):
        self.make, self.seconds, self.count = make, 0.0, 0

    def take(self, count):
        samples = [self.make(self.count + index) for index in range(count)]
        self.count += count
        self.seconds += sum(samples) / 1000
        return samples

    def now(self):
        return self.seconds


def test_warm_up_waits_until_it_is_steady():
    stream = Stream(lambda index: 5.0 - index / 200 if index < 600 else 2.0)
    assert warm_up(stream.take, FULL, stream.now) >= 600
    assert stream.seconds < FULL.warmup_max_s
    short = Stream(lambda index: 10.0)
    assert warm_up(short.take, FULL, short.now) == 2 * FULL.warmup_block  # a second's worth


def test_warm_up_ends_at_its_longest():
    stream = Stream(lambda index: 1.0 + index)
    warm_up(stream.take, FULL, stream.now)
    assert stream.seconds >= FULL.warmup_max_s


def test_one_of_several_processes_waits_for_no_two_medians_to_agree():
    restless = Stream(lambda index: 0.2 * (1 + index % 50))
    in_each = FULL.in_each(FULL.processes)
    assert warm_up(restless.take, in_each, restless.now) == 50
    short = Stream(lambda index: 0.1)
    assert warm_up(short.take, in_each, short.now) * 0.1e-3 == pytest.approx(0.125, rel=0.05)


def test_known_sleeps_give_known_statistics():
    pauses = itertools.cycle([0.001] * 19 + [0.004])
    block = Stopwatch(CPU).block(lambda: time.sleep(next(pauses)), 200, discarded=2)
    stats = LatencyStats.from_samples(block.calls_ms)
    assert clock_of(CPU) == "perf_counter"
    assert stats.n == 200
    # A sleep lasts at least as long as asked for.
    assert 1.0 <= stats.min_ms <= stats.p50_ms < 2.5
    assert stats.mean_ms >= (19 * 1.0 + 4.0) / 20
    assert stats.max_ms >= 4.0
    assert stats.mean_ms == pytest.approx(block.mean_ms)
    assert block.wall_s * 1000 >= sum(block.calls_ms)


def test_a_block_knows_by_itself_that_something_else_ran():
    """A sleep is time in which the processor did something else; counting is not."""
    watch = Stopwatch(CPU)
    assert watch.block(lambda: time.sleep(0.002), 5).preempted
    busy = [watch.block(lambda: sum(range(20_000)), 5) for _ in range(50)]
    assert all(block.cpu_s <= 1.05 * block.wall_s + 0.001 for block in busy)
    calm = Block([1.0], wall_s=0.020, cpu_s=0.0199)
    assert not calm.preempted
    for changed in ({"wall_s": 0.0202}, {"switches": 1}, {"steal_s": 0.01}):
        assert replace(calm, **changed).preempted
    assert not replace(calm, calls_ms=[100.0]).preempted  # its latency has no say


def test_discarded_calls_come_first_and_do_not_count():
    pauses = iter([0.02, 0.02, 0.0, 0.0, 0.0])
    block = Stopwatch(CPU).block(lambda: time.sleep(next(pauses)), 3, discarded=2)
    assert len(block.calls_ms) == 3
    assert max(block.calls_ms) < 20
    assert block.wall_s < 0.02


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_off_meanwhile_and_as_before_after(enabled):
    (gc.enable if enabled else gc.disable)()
    try:
        with no_garbage_collection():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with pytest.raises(ZeroDivisionError), no_garbage_collection():
            _ = 1 / 0
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_memory_counts_the_peak_from_where_it_was_forgotten():
    """What a preparation took and gave back is not counted; what calls take is."""
    megabyte = 2**20
    memory = Memory(CPU)
    preparation = bytearray(200 * megabyte)
    del preparation
    memory.forget_peak()
    assert memory.growth < 100 * megabyte
    kept = bytearray(50 * megabyte)
    assert 40 * megabyte < memory.growth < 100 * megabyte
    del kept
    assert 40 * megabyte < memory.growth < 100 * megabyte


BACKBONES = {
    "mobilenet_v3_small": {"width": 1.0},
    "mobilenet_v3_large": {"width": 1.0},
    "mobilenet_v2": {"width": 1.0},
    "shufflenet_v2": {"width": 1.0},
    "resnet18": {},
    "resnet_cifar": {"width": 1.0, "depth": 8, "output_stride": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_agrees_with_torchs_timer(name):
    """Medians of blocks taken in turns; the best of three, as other programs disturb both.

    The other's blocks are what it makes of them itself: called one by one, with its own work in
    between, the same network takes up to a tenth longer.
    """
    common = {"output_stride": 8, "dropout": 0.0, "bn_momentum": 0.1, "bn_eps": 1e-5}
    network = getattr(models, name)(10, **common | BACKBONES[name]).eval()
    image = torch.rand(1, 3, 32, 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    timer = torch.utils.benchmark.Timer(
        "network(image)", globals={"network": network, "image": image}, num_threads=1
    )
    watch = Stopwatch(CPU)
    differences = []
    try:
        with torch.inference_mode():
            watch.block(lambda: network(image), 50)
            for _ in range(3):
                ours, theirs = [], []
                for _ in range(5):
                    ours += watch.block(lambda: network(image), 50, discarded=20).calls_ms
                    theirs += [
                        1000 * time for time in timer.blocked_autorange(min_run_time=0.3).times
                    ]
                ratio = statistics.median(ours) / statistics.median(theirs)
                differences.append(abs(ratio - 1))
                if differences[-1] < 0.05:
                    break
    finally:
        torch.set_num_threads(threads)
    print(f"{name}: {[f'{100 * difference:.1f} %' for difference in differences]}")
    assert min(differences) < 0.05
