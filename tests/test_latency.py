import gc
import math
import statistics
import time

import numpy as np
import pytest
import torch
import torch.utils.benchmark
from hypothesis import given
from hypothesis import strategies as st

from cifar_lightning import models
from cifar_lightning.benchmark.timing import clock_of, collect, measure_latency, warm_up
from cifar_lightning.config.protocols import PROTOCOLS, Protocol
from cifar_lightning.runs.latency import BLOCK, LatencyStats

QUICK, FULL = PROTOCOLS["quick"], PROTOCOLS["full"]
CPU = torch.device("cpu")


def test_statistics_by_hand():
    stats = LatencyStats.from_samples([4.0, 1.0, 3.0, 2.0], FULL)
    assert (stats.n, stats.mean_ms, stats.min_ms, stats.p50_ms, stats.max_ms) == (4, 2.5, 1, 2, 4)
    assert stats.std_ms == pytest.approx(math.sqrt(5 / 3))
    assert stats.mean_ci_ms is stats.p95_ms is stats.p99_ms is None
    assert not stats.converged


@given(st.lists(st.floats(0.01, 1000), min_size=2, max_size=900), st.floats(0.1, 3))
def test_statistics_are_numpys(values, skew):
    samples = [value**skew for value in values]
    stats = LatencyStats.from_samples(samples, FULL)
    assert stats.mean_ms == pytest.approx(np.mean(samples))
    assert stats.std_ms == pytest.approx(np.std(samples, ddof=1), abs=1e-9 * max(samples))
    for percent, least in ((50, 1), (90, 65), (95, 130), (99, 662)):
        expected = np.percentile(samples, percent, method="inverted_cdf")
        found = getattr(stats, f"p{percent}_ms")
        assert found == (expected if len(samples) >= least else None)


def test_p95_of_whole_hundreds_is_the_rank_itself():
    # 0.95 * n in floating point is just above the whole number for some n.
    for n in range(140, 3000, 20):
        stats = LatencyStats.from_samples([float(i) for i in range(1, n + 1)], FULL)
        assert stats.p95_ms == n * 95 // 100


def test_p95_interval_has_the_known_ranks():
    stats = LatencyStats.from_samples([float(i) for i in range(1, 1001)], FULL)
    assert (stats.p95_low_ms, stats.p95_high_ms) == (936, 964)


def test_mean_interval_covers_the_truth():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        stats = LatencyStats.from_samples(list(generator.gamma(2.0, 1.0, size=500)), FULL)
        covered += abs(stats.mean_ms - 2.0) <= stats.mean_ci_ms
    # 95 % of 300 is 285; three standard deviations are 11
    assert 274 <= covered <= 296


def test_one_sample_is_too_few():
    with pytest.raises(ValueError, match="1 samples"):
        LatencyStats.from_samples([1.0], FULL)


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


def test_a_steady_stream_stops_at_the_least():
    stream = Stream(lambda index: 5.0)
    samples = collect(stream.take, FULL, stream.now)
    assert len(samples) == FULL.samples
    assert LatencyStats.from_samples(samples, FULL).converged


def test_a_fast_stream_goes_on_for_the_least_time():
    stream = Stream(lambda index: 0.1)
    collect(stream.take, FULL, stream.now)
    assert FULL.sampling_s <= stream.seconds < FULL.sampling_s + 0.1


def test_a_drifting_stream_runs_into_the_cap_and_says_so():
    stream = Stream(lambda index: 5.0 + index / 500)
    samples = collect(stream.take, FULL, stream.now)
    assert stream.seconds >= FULL.sampling_max_s
    assert not LatencyStats.from_samples(samples, FULL).converged


def test_two_modes_are_told_as_they_are():
    generator = np.random.default_rng(2)
    stream = Stream(lambda index: 2.0 if generator.random() < 0.9 else 6.0)
    samples = collect(stream.take, FULL, stream.now)
    stats = LatencyStats.from_samples(samples, FULL)
    assert stats.p50_ms == 2.0
    assert stats.p95_ms == 6.0
    assert abs(stats.mean_ms - 2.4) <= 2 * stats.mean_ci_ms
    assert stats.n > FULL.samples  # the mean of two modes takes longer to settle


def test_a_heavy_tail_is_kept_and_does_not_pass_as_converged_early():
    generator = np.random.default_rng(3)
    stream = Stream(lambda index: 1.0 + generator.pareto(1.5))
    samples = collect(stream.take, FULL, stream.now)
    assert len(samples) == stream.count  # no sample is dropped
    assert stream.seconds >= FULL.sampling_max_s
    assert not LatencyStats.from_samples(samples, FULL).converged


def test_noise_needs_more_samples_than_calm():
    generator = np.random.default_rng(1)
    calm = Stream(lambda index: generator.normal(2.1, 0.01))
    noisy = Stream(lambda index: generator.normal(2.1, 0.3))
    few = len(collect(calm.take, FULL, calm.now))
    many = len(collect(noisy.take, FULL, noisy.now))
    assert few == FULL.samples < many


def test_warm_up_waits_until_it_is_steady():
    stream = Stream(lambda index: 5.0 - index / 200 if index < 600 else 2.0)
    assert warm_up(stream.take, FULL, stream.now) >= 600
    assert stream.seconds < FULL.warmup_max_s
    short = Stream(lambda index: 10.0)
    assert warm_up(short.take, FULL, short.now) == 2 * BLOCK  # a second's worth


def test_warm_up_ends_at_its_longest():
    stream = Stream(lambda index: 1.0 + index)
    warm_up(stream.take, FULL, stream.now)
    assert stream.seconds >= FULL.warmup_max_s


def test_known_sleeps_give_known_statistics():
    protocol = Protocol("test", 50, 0.0, 0.1, samples=200, sampling_s=0.0, sampling_max_s=0.1)
    pauses = iter([0.001] * 19 + [0.004])

    def pause():
        nonlocal pauses
        duration = next(pauses, None)
        if duration is None:
            pauses = iter([0.001] * 19 + [0.004])
            duration = next(pauses)
        time.sleep(duration)

    latency = measure_latency(pause, CPU, protocol)
    stats = latency.stats
    assert clock_of(CPU) == "perf_counter"
    assert stats.n == len(latency.samples_ms)
    # A sleep lasts at least as long as asked for.
    assert 1.0 <= stats.min_ms <= stats.p50_ms < 2.5
    assert stats.mean_ms >= (19 * 1.0 + 4.0) / 20
    assert stats.max_ms >= 4.0
    assert stats.mean_ms == pytest.approx(statistics.fmean(latency.samples_ms))


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_off_meanwhile_and_as_before_after(enabled):
    seen = set()
    (gc.enable if enabled else gc.disable)()
    try:
        measure_latency(lambda: seen.add(gc.isenabled()), CPU, QUICK)
        assert seen == {False}
        assert gc.isenabled() == enabled
        with pytest.raises(ZeroDivisionError):
            measure_latency(lambda: 1 / 0, CPU, QUICK)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_an_exception_between_blocks_ends_it():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_latency(lambda: None, CPU, FULL, stop)
    assert gc.isenabled()


BACKBONES = {
    "mobilenet_v3_small": {"width": 1.0},
    "mobilenet_v3_large": {"width": 1.0},
    "mobilenet_v2": {"width": 1.0},
    "shufflenet_v2": {"width": 1.0},
    "resnet18": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_agrees_with_torchs_timer(name):
    """Medians of blocks taken in turns; the best of three, as other programs disturb both.

    The other's blocks are what it makes of them itself: called one by one, with its own work in
    between, the same network takes up to a tenth longer.
    """
    network = getattr(models, name)(
        10, output_stride=8, dropout=0.0, bn_momentum=0.1, bn_eps=1e-5, **BACKBONES[name]
    ).eval()
    image = torch.rand(1, 3, 32, 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    timer = torch.utils.benchmark.Timer(
        "network(image)", globals={"network": network, "image": image}, num_threads=1
    )
    protocol = Protocol("block", 20, 0.0, 0.0, samples=50, sampling_s=0.0, sampling_max_s=10)
    differences = []
    try:
        with torch.inference_mode():
            for _ in range(3):
                ours, theirs = [], []
                for _ in range(5):
                    ours += measure_latency(lambda: network(image), CPU, protocol).samples_ms[:50]
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_events_time_the_device_not_the_launch():
    device = torch.device("cuda")
    matrix = torch.rand(4096, 4096, device=device)
    latency = measure_latency(lambda: matrix @ matrix, device, QUICK)
    start = time.perf_counter()
    for _ in range(20):
        matrix @ matrix
    torch.cuda.synchronize()
    assert clock_of(device) == "cuda_event"
    assert latency.stats.p50_ms == pytest.approx((time.perf_counter() - start) * 50, rel=0.5)
