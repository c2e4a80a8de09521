"""Measuring on a GPU by the real commands, and what the clocks there say."""

import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
import torch
from conftest import ROOT
from torch import nn

from cifar_lightning import models
from cifar_lightning.benchmark.contention import device_state, state_now_and_then
from cifar_lightning.benchmark.launches import time_launches
from cifar_lightning.benchmark.timing import Stopwatch, clock_of
from cifar_lightning.runs.latency import Launches
from cifar_lightning.system.devices import check_usable
from cifar_lightning.variants import registry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
GPU = torch.device("cuda:0")


def test_events_time_a_call_with_its_waiting_for_launches():
    """A large product is the device's work alone; many small operations are mostly launching."""
    matrix = torch.rand(4096, 4096, device=GPU)
    watch = Stopwatch(GPU)
    watch.block(lambda: matrix @ matrix, 20)
    block = watch.block(lambda: matrix @ matrix, 20)
    start = time.perf_counter()
    for _ in range(20):
        matrix @ matrix
    torch.cuda.synchronize()
    assert clock_of(GPU) == "cuda_event"
    assert len(block.walls_ms) == 20
    assert statistics.median(block.calls_ms) == pytest.approx(
        (time.perf_counter() - start) * 50, rel=0.5
    )
    assert all(wall > ms for wall, ms in zip(block.walls_ms, block.calls_ms, strict=True))


def test_no_event_is_created_while_calls_are_timed(monkeypatch):
    watch, made = Stopwatch(GPU), []
    real = torch.cuda.Event

    def event(**settings):
        made.append(real(**settings))
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Event", event)
    known = []

    def call():
        known.append(len(made))
        return all(one.cuda_event for one in made)  # a handle: it has been created

    watch.block(call, 30, discarded=2)
    assert set(known) == {60}
    assert all(one.cuda_event for one in made)


class Chain(nn.Module):
    """So many small operations, one after the other."""

    def __init__(self, kernels):
        super().__init__()
        self.kernels = kernels
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        for _ in range(self.kernels):
            images = images + self.weight
        return images.mean((2, 3))


def launches_of(network, variant="fp32"):
    image = torch.rand(1, 3, 32, 32, device=GPU)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        prepared = stack.enter_context(
            registry.prepare(variant, network.eval(), GPU, lambda: torch.rand(8, 3, 32, 32))
        )
        stack.enter_context(prepared.switched())
        stack.enter_context(torch.inference_mode())

        def call():
            return prepared.forward(image)

        watch = Stopwatch(GPU)
        watch.block(call, 50)
        calls = watch.block(call, 50).calls_ms
        return time_launches(call, image, prepared), statistics.median(calls)


@pytest.mark.parametrize("name", ["resnet_cifar", "mobilenet_v3_small"])
def test_the_devices_time_is_near_the_graphs_whatever_the_queue_holds(name):
    """Twenty calls of the second network are more than the launch queue holds.

    The best of ten, as other tests' processes may have the GPU in between.
    """
    size = {"depth": 8, "output_stride": 4} if name == "resnet_cifar" else {"output_stride": 8}
    common = {"width": 1.0, "dropout": 0.0, "bn_momentum": 0.1, "bn_eps": 1e-5}
    for _ in range(10):
        found, call_ms = launches_of(getattr(models, name)(10, **common | size))
        print(found, call_ms)
        near = 0.9 < found.device_ms / found.graph_ms < 1.6
        if near and found.bind(call_ms) and found.enqueue_ms > 1.5 * found.device_ms:
            return
    pytest.fail("see what is printed")


def test_what_waits_for_the_device_has_no_time_of_the_device_alone():
    class Waiting(Chain):
        def forward(self, images):
            return super().forward(images) + images.sum().item()

    found, _ = launches_of(Waiting(5))
    assert found.device_ms is None
    assert found.graph_ms is None
    assert found.bind(1.0) is None
    after, _ = launches_of(Chain(5))  # a capture that failed leaves nothing behind
    assert after.graph_ms > 0


def test_the_drivers_states():
    pytest.importorskip("pynvml", reason="needs the extra `gpu`")
    state = device_state(GPU)
    assert state["sm_mhz"] > 0
    assert state["temperature_c"] > 0
    assert "governor" in state
    look, seen, matrix = state_now_and_then(GPU), [], torch.rand(2048, 2048, device=GPU)
    end = time.perf_counter() + 3
    while time.perf_counter() < end:
        for _ in range(20):
            matrix @ matrix
        torch.cuda.synchronize()
        if (state := look()) is not None:
            seen.append(state)
    assert 10 < len(seen) <= 31
    print(json.dumps(seen))
    assert all(one["since_s"] >= 0.1 for one in seen)
    assert any(one["sm_mhz"] > 0 for one in seen)
    known = sum(one["others_s"] for one in seen)
    assert 0 <= known <= 3.5


VARIANTS = "fp32", "tf32", "fp16", "fused+fp16+channels_last+cuda_graph"


@pytest.fixture(autouse=True)
def with_hydra(request):
    if "tmp_path" in request.fixturenames:
        pytest.importorskip("hydra", reason="needs Hydra, which commands are made of")


def test_networks_on_a_gpu(call, tmp_path):
    from cifar_lightning.cli.measure import main
    from cifar_lightning.runs.benchmark import BenchmarkRecord

    ended = call(
        main,
        f"outputs={tmp_path}", "protocol=quick", "device=cuda", "model=[resnet8,mobilenetv3]",
        f"variants=[{','.join(VARIANTS)}]",
    )  # fmt: skip
    print(ended.out)
    assert ended.status == 0, ended.err
    (path,) = (tmp_path / "benchmarks").glob("*.json")
    record = BenchmarkRecord.read(path)
    assert record.clock == "cuda_event"
    assert len(record.ranked) == 2 * len(VARIANTS)
    assert record.gpu.coverage is not None
    assert {"before", "after"} == set(record.state)
    assert "governor" in record.state["before"]
    for number in record.ranked:
        one, timing = record.candidates[number], record.timing(number)
        assert one.contradiction is None, (one.label, one.variant, one.convolution_error)
        assert one.preparation_s > 0
        assert one.first_call_ms > 0
        assert timing.wall.mean_ms > timing.latency.mean_ms
        assert one.launches != Launches()
        assert (one.launches.graph_ms is None) == ("cuda_graph" in one.variant)
    assert [state for one in record.sessions[0].rounds for state in one.states]
    assert "GPU: " in ended.out
    assert " MHz, " in ended.out


def test_a_run_that_was_measured_on_the_cpu_is_measured_on_the_gpu(command, outputs):
    """By the command that trained it; a third time there is nothing left to do."""
    from cifar_lightning.runs.results import rows_of

    settings = ("data=digits", "model=resnet8", "epochs=1", "augment=crop", "benchmark=quick")
    ended = command(*settings, "trainer.accelerator=cpu", "benchmark.variants=[fp32]")
    assert ended.status == 0, ended.err
    (folder,) = (outputs / "runs").iterdir()
    assert [row.clock for row in rows_of(folder)] == ["perf_counter"]
    for _ in range(2):
        ended = command(*settings, "benchmark.variants=[fp32,cuda_graph]")
        assert ended.status == 0, ended.err
        assert "is finished" in ended.out
        rows = {(row.clock, row.variant): row for row in rows_of(folder)}
        assert {*rows} == {
            ("perf_counter", "fp32"), ("cuda_event", "fp32"), ("cuda_event", "cuda_graph"),
        }  # fmt: skip
    assert len([*(outputs / "benchmarks").iterdir()]) == 2
    one = rows["cuda_event", "fp32"]
    assert one.wall_ms > one.lat_mean_ms > one.device_ms > 0
    assert one.enqueue_ms > 0
    assert one.graph_ms > 0
    assert one.launch_bound
    assert one.test_acc == pytest.approx(rows["perf_counter", "fp32"].test_acc, abs=0.5)


# A part whose preparation reads beyond the end of a tensor, on the device.
BEYOND = """
import torch
from cifar_lightning.variants import registry
from cifar_lightning.variants.context import Kind
def beyond(variant):
    variant.need_gpu()
    torch.zeros(4, device=variant.device)[torch.tensor([9], device=variant.device)]
    torch.cuda.synchronize()
registry.PARTS["fused"] = (Kind.GRAPH, beyond)
from cifar_lightning.cli import start
start.measure()
"""


def test_a_lost_device_ends_the_benchmark_in_one_line(tmp_path):
    check_usable(GPU, RuntimeError("of another kind"))
    arguments = (
        f"outputs={tmp_path}", "protocol=quick", "device=cuda", "model=[resnet8]",
        "variants=[fp32,fused,fp16]",
    )  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", BEYOND, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: cuda:0 can't be used any more by this process, after ")
    assert not (tmp_path / "benchmarks").exists()
