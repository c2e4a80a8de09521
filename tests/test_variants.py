import gc
import sys
import warnings
import weakref
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from operator import attrgetter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cifar_lightning import models
from cifar_lightning.errors import UserError
from cifar_lightning.models.interfaces import reparameterized
from cifar_lightning.variants import (
    compiled,
    context,
    onnx,
    onnx_int8,
    precision,
    registry,
    tensorrt,
)
from cifar_lightning.variants.context import Kind, Unsupported
from cifar_lightning.variants.cuda_graph import CapturedGraph, capture
from cifar_lightning.variants.precision import flags
from cifar_lightning.variants.registry import FORMATS, PARTS, check, prepare

CPU = torch.device("cpu")
COMMON = {"output_stride": 16, "dropout": 0.1, "bn_momentum": 0.1, "bn_eps": 1e-5}
NETWORKS = {
    "mobilenet_v3_small": COMMON | {"width": 0.35},
    "mobilenet_v3_large": COMMON | {"width": 0.35},
    "mobilenet_v2": COMMON | {"width": 0.35},
    "shufflenet_v2": COMMON | {"width": 0.5},
    "resnet18": COMMON | {"output_stride": 8},
    "resnet_cifar": COMMON | {"output_stride": 4, "width": 1.0, "depth": 8},
    "repvgg": COMMON | {"output_stride": 4, "channels": [8, 16], "depth": [2, 2]},
    "cifarnet": {
        "stem": 24, "stem_kernel": 2, "stem_stride": 1, "whiten": True, "channels": [8, 16],
        "depth": 2, "downsample": "pool", "activation": "gelu", "pool": "max", "scale": 1 / 9,
        "dirac": True, "bn_momentum": 0.1, "bn_eps": 1e-5,
    },
}  # fmt: skip
IMAGES = torch.randn(1, 3, 32, 32), torch.randn(100, 3, 32, 32)
# Largest difference of logits over their largest value.
TOLERANCE = {
    "fp32": 1e-6,
    "channels_last": 1e-4,
    "fused": 1e-4,
    "fused+channels_last": 1e-4,
    "onnx": 1e-4,
    "torch_export": 1e-6,
    "fp16": 0.02,
    "bf16": 0.1,
    "autocast_bf16": 0.1,
    "autocast_fp16": 0.02,
    "int8": 0.25,
}
NEEDS_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
)
GPU = pytest.param("cuda", marks=NEEDS_GPU)


def on_a_gpu(test):
    for mark in NEEDS_GPU:
        test = mark(test)
    return test


def network(name="mobilenet_v3_small", seed=0):
    """A network as it is executed, whose BatchNorms have seen images, as a trained one's have."""
    torch.manual_seed(seed)
    built = getattr(models, name)(10, **NETWORKS[name])
    built.train()
    with torch.no_grad():
        for _ in range(8):
            built(torch.randn(16, 3, 32, 32))
    return reparameterized(built.eval())


def calibration():
    return torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits_of(variant, built, images, device=CPU):
    with (
        prepare(variant, built, device, calibration) as prepared,
        prepared.switched(),
        torch.inference_mode(),
    ):
        return [prepared.forward(batch.to(device)).clone().cpu() for batch in images], prepared


def assert_close(found, expected, tolerance):
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@cache
def prepared_once(variant, device):
    """Give logits of `IMAGES`, the size, and whether every flag was as before: exports are slow."""
    before = flags()
    found, prepared = logits_of(variant, network(), IMAGES, torch.device(device))
    return found, prepared.size_bytes, flags() == before


@pytest.mark.parametrize("variant", TOLERANCE)
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_logits_are_the_backbones(variant, device):
    with torch.no_grad():
        expected = [network()(batch) for batch in IMAGES]
    try:
        found, size, _ = prepared_once(variant, device)
    except Unsupported as reason:
        refusals = {"onnx": "onnxruntime-gpu", "int8": "needs a CPU"}
        if device == "cpu" or refusals.get(variant, "?") not in str(reason):
            raise AssertionError(f"{variant} runs on a {device}: {reason}") from reason
        return
    for ours, theirs in zip(found, expected, strict=True):
        # Another device sums in another order.
        assert_close(ours, theirs, max(TOLERANCE[variant], 0 if device == "cpu" else 1e-3))
    assert size > 0


@pytest.mark.parametrize(
    "name", ["resnet_cifar", "cifarnet", "repvgg", "shufflenet_v2", "mobilenet_v3_small"]
)
@pytest.mark.parametrize(
    "variant",
    [
        "tf32",
        "cuda_graph",
        "tf32+cuda_graph",
        "autocast_fp16+cuda_graph",
        "fused+fp16+channels_last+cuda_graph",
        "fused+bf16+channels_last+cuda_graph",
    ],
)
@on_a_gpu
def test_logits_on_a_gpu(variant, name):
    """Also where a graph is replayed for another image, and for another number of them."""
    images = *IMAGES, torch.randn(1, 3, 32, 32), IMAGES[0]
    with torch.no_grad():
        expected = [network(name)(batch) for batch in images]
    found, _ = logits_of(variant, network(name), images, torch.device("cuda"))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, 0.1 if "bf16" in variant else 0.02)
    assert not torch.equal(found[0], found[2])


class Waits(nn.Module):
    """A network that can't be captured, since the CPU waits for the device in it."""

    def __init__(self, wait):
        super().__init__()
        self.linear, self.wait = nn.Linear(3 * 32 * 32, 10), wait

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        self.wait(logits)
        return logits


@pytest.mark.parametrize(
    "wait",
    [
        lambda logits: logits.sum().item(),  # told before anything is captured
        lambda logits: torch.cuda.synchronize(),  # ends the capture
    ],
)
@on_a_gpu
def test_after_a_failed_capture_the_device_is_as_before(wait):
    device = torch.device("cuda")
    with pytest.raises(RuntimeError, match=r"synchronizing|captur"):
        logits_of("cuda_graph", Waits(wait), IMAGES, device)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.cuda.get_sync_debug_mode() == 0
    with torch.no_grad():
        expected = network()(IMAGES[0])
    (found,), _ = logits_of("cuda_graph", network(), IMAGES[:1], device)
    assert_close(found, expected, 1e-3)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(3, device=device).sum().item() > 0


@pytest.mark.parametrize("fails", ["warming up", "capturing"])
def test_a_failed_capture_leaves_its_stream(fails, monkeypatch):
    """On stand-ins: after an error `torch.cuda.graph` leaves its stream the current one."""
    streams, modes = [SimpleNamespace(wait_stream=lambda other: None)], [0]

    class Graph:
        def __init__(self, graph, stream):
            self.stream = stream

        def __enter__(self):
            streams.append(self.stream)

        def __exit__(self, kind, *_):
            assert kind is RuntimeError
            raise kind("the capture is invalid")

    @contextmanager
    def stream(one):
        before = len(streams)
        streams.append(one)
        try:
            yield
        finally:
            del streams[before:]

    for name, stand_in in {
        "device": lambda device: nullcontext(),
        "Stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
        "CUDAGraph": lambda: None,
        "current_stream": lambda: streams[-1],
        "stream": stream,
        "graph": Graph,
        "get_sync_debug_mode": lambda: modes[-1],
        "set_sync_debug_mode": modes.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    calls = []

    def forward(images):
        calls.append(modes[-1])
        if modes[-1] == "error" and len(calls) == (3 if fails == "warming up" else 4):
            raise RuntimeError("called a synchronizing CUDA operation")
        return images

    with pytest.raises(RuntimeError, match=r"synchronizing|invalid"):
        capture(forward, torch.zeros(1))
    assert calls == [0, 0, "error", "error"][: len(calls)]
    assert len(streams) == 1
    assert modes[-1] == 0


def test_a_graphs_replay_keeps_the_memory_that_it_reads():
    replays = []
    graph = SimpleNamespace(replay=lambda: replays.append(1))
    images, logits = torch.zeros(1, 3, 32, 32), torch.zeros(1, 10)
    captured = CapturedGraph(graph, nn.Identity(), images, logits)
    given = torch.ones(1, 3, 32, 32)
    assert captured(given) is logits
    assert torch.equal(images, given)
    replay, memory = captured.replay, [weakref.ref(images), weakref.ref(logits)]
    del captured, images, logits
    gc.collect()
    replay()
    assert len(replays) == 2
    assert all(one() is not None for one in memory)


@pytest.mark.parametrize(
    "variant",
    [
        "fused+fp16+channels_last+compile",
        "tf32+compile",
        "compile_max_autotune",
        "tensorrt",
        "fused+fp16+tensorrt",
    ],
)
@on_a_gpu
def test_compiled_logits_on_a_gpu(variant):
    images = IMAGES[0], torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = [network("repvgg")(batch) for batch in images]
    try:
        found, prepared = logits_of(variant, network("repvgg"), images, torch.device("cuda"))
    except Unsupported as reason:
        if "tensorrt" not in variant or "pip install 'torch-tensorrt==" not in str(reason):
            raise
        pytest.skip(str(reason))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, 0.02)
    assert not torch.equal(*found)
    assert prepared.notes.get("cudagraphs") == (None if "tensorrt" in variant else "yes")


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("skipped", ["", "skipping cudagraphs due to cpu device (arg0)"])
def test_whether_a_compiled_network_runs_as_cuda_graphs_is_noted(recorded, skipped, monkeypatch):
    """Inductor says it in its log and its counters alone."""
    from torch._dynamo.utils import counters
    from torch._inductor.cudagraph_utils import log_cudagraph_skip_and_bump_counter

    def compile_forward(variant, mode):
        assert mode == "reduce-overhead"
        counters["inductor"]["cudagraph_recorded_non_static_inputs"] += recorded
        if skipped:
            log_cudagraph_skip_and_bump_counter(skipped)

    monkeypatch.setattr(compiled, "compile_forward", compile_forward)
    variant = SimpleNamespace(device=torch.device("cuda"), notes={})
    compiled.use_compile(variant)
    reason = skipped or ("" if recorded else "none was recorded")
    assert variant.notes == {"cudagraphs": f"no: {reason}" if reason else "yes"}


@pytest.mark.parametrize("missing", ["Failed to find C compiler. Please specify via CC", None])
def test_a_missing_compiler_of_tritons_is_no_failure(missing, monkeypatch):
    from torch._inductor.exc import InductorError

    def broken(forward, **how):
        def call(images):
            raise InductorError(RuntimeError(missing or "out of memory"), None)

        return call

    monkeypatch.setattr(torch, "compile", broken)
    refusal = pytest.raises(Unsupported, match=r"needs a compiler: .*find C compiler")
    with (
        refusal if missing else pytest.raises(InductorError),
        prepare("compile", Small(4).eval(), CPU, calibration),
    ):
        pass


def test_warnings_of_what_is_done_on_purpose_are_left_out(monkeypatch):
    said = [
        "dynamo_pgo force disabled by torch.compiler.config.force_disable_caches",
        "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled.",
        "something else",
    ]

    def warning(forward, **how):
        def call(images):
            for message in said:
                warnings.warn(message, stacklevel=1)
            return forward(images)

        return call

    monkeypatch.setattr(torch, "compile", warning)
    with (
        warnings.catch_warnings(record=True) as seen,
        prepare("compile", Small(4).eval(), CPU, calibration),
    ):
        pass
    assert {str(one.message) for one in seen} == {"something else"}


@pytest.mark.parametrize("variant", ["tensorrt", "fused+fp16+channels_last+tensorrt"])
def test_what_tensorrt_is_given_can_be_exported(variant, monkeypatch):
    """On a stand-in that exports as torch-tensorrt does: the engines themselves need a GPU."""
    asked = []

    def compile_as_exported(module, *, ir, inputs, **options):
        asked.append((ir, inputs, options["disable_tf32"]))
        exported = torch.export.export(module, (torch.zeros(inputs[0]),), strict=False)
        assert {*exported.state_dict} == {*module.state_dict()}
        return exported.run_decompositions().module()

    stand_in = SimpleNamespace(compile=compile_as_exported, Input=lambda shape: shape)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", stand_in)
    monkeypatch.setattr(context.VariantContext, "need_gpu", lambda variant: None)
    with torch.no_grad():
        expected = [network("repvgg")(batch) for batch in IMAGES]
    found, prepared = logits_of(variant, network("repvgg"), IMAGES * 2)
    for ours, theirs in zip(found, expected * 2, strict=True):
        assert_close(ours, theirs, 0.02)
    assert asked == [("dynamo", [tuple(batch.shape)], True) for batch in IMAGES]
    assert prepared.preparation_s > 0


def test_tensorrt_says_which_release_of_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(Unsupported, match="needs torch_tensorrt: pip install 'torch-tensorrt==2"):
        tensorrt.use_tensorrt(SimpleNamespace(need_gpu=lambda: None))


def test_an_incomplete_compiler_is_told_by_its_first_error(tmp_path):
    """As g++ without Python's headers."""
    import torch._inductor.config as inductor

    said = "x.cpp:2:10: fatal error: Python.h: No such file or directory"
    compiler = tmp_path / "g++"
    script = f'case "$*" in *--version*) echo "g++ 13.2" ;; *) echo "{said}" >&2; exit 1 ;; esac'
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with (
        inductor.patch({"cpp.cxx": (None, str(compiler))}),
        pytest.raises(context.Unsupported) as refused,
        registry.prepare("compile", network, torch.device("cpu"), calibration),
    ):
        pass
    assert str(refused.value) == f"needs a compiler: {said}"


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["compile", "fused+compile", "fp16+compile"])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_compiled_logits(variant, device):
    images = torch.randn(1, 3, 32, 32), torch.randn(100, 3, 32, 32), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = [network()(batch) for batch in images]
    found, prepared = logits_of(variant, network(), images, torch.device(device))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, 0.02 if "fp16" in variant else 1e-4)
    assert prepared.preparation_s > 0
    assert prepared.notes.get("cudagraphs") == (None if device == "cpu" else "yes")


@pytest.mark.parametrize("name", NETWORKS)
def test_fusing_leaves_no_batch_norm(name):
    images = torch.randn(4, 3, 32, 32)
    built = network(name)
    with torch.no_grad():
        expected = built(images)
    with prepare("fused", built, CPU, calibration) as prepared, torch.inference_mode():
        assert not any(isinstance(m, nn.BatchNorm2d) for m in prepared.forward.modules())
        assert_close(prepared.forward(images), expected, 1e-4)
        assert prepared.notes["fusing_error"] < 1e-3


@pytest.mark.parametrize("name", ["repvgg", "cifarnet"])
@pytest.mark.parametrize("variant", ["channels_last", "fused+bf16", "onnx"])
def test_logits_of_networks_without_residuals(name, variant):
    with torch.no_grad():
        expected = network(name)(IMAGES[1])
    (found,), prepared = logits_of(variant, network(name), IMAGES[1:])
    assert_close(found, expected, TOLERANCE[variant.split("+")[-1]])
    assert prepared.size_bytes > 0


@pytest.mark.parametrize(
    "name",
    [
        "shufflenet_v2",
        "cifarnet",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("mobilenet_v3_large", "resnet18", "repvgg")
        ),
    ],
)
def test_int8_mostly_decides_alike(name):
    images = torch.randn(100, 3, 32, 32)
    with torch.no_grad():
        expected = network(name)(images)
    (found,), prepared = logits_of("int8", network(name), [images])
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.7
    assert prepared.preparation_s > 0


def test_int8_bears_one_loud_channel_behind_the_stem():
    torch.manual_seed(0)
    stem, loud = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16)
    rest = nn.Conv2d(16, 8, 1), nn.Hardswish(), nn.Flatten(), nn.Linear(8 * 28 * 28, 10)
    built = nn.Sequential(stem, nn.ReLU(), loud, *rest).eval()
    with torch.no_grad():  # as some trainings leave it: the same function, with ranges far apart
        stem.weight[0] *= 300
        stem.bias[0] *= 300
        loud.weight[0] /= 300
        images = torch.randn(100, 3, 32, 32)
        expected = built(images)
    (found,), _ = logits_of("int8", built, [images])
    spread = (expected - expected.mean(0)).std()  # of logits between images
    assert (found - expected).std() < 0.25 * spread


def test_int8_bears_a_few_values_that_are_much_larger_than_all_others(monkeypatch):
    """As MobileNetV4's layers have them: a scale that reaches them leaves the others no levels."""
    torch.manual_seed(0)
    stem, middle = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)
    rest = nn.ReLU(), nn.Flatten(), nn.Linear(16 * 30 * 30, 10)
    built = nn.Sequential(stem, nn.ReLU(), middle, *rest).eval()
    images = torch.randn(100, 3, 32, 32)
    with torch.no_grad():
        before = stem(calibration())[:, 0]
        stem.bias[0] -= before.flatten().quantile(0.999)  # one pixel of a thousand is left
        for tensor in (stem.weight[0], stem.bias[0]):
            tensor *= 300
        middle.weight[:, 0] /= 300
        expected = built(images)

    def error():
        (found,), _ = logits_of("int8", built, [images])
        return ((found - expected).std() / (expected - expected.mean(0)).std()).item()

    assert error() < 0.1
    monkeypatch.setattr(onnx_int8, "LOUD", float("inf"))
    assert error() > 0.3


def test_sizes_are_those_of_the_files():
    sizes = {}
    for variant in ("fp32", "channels_last", "fused", "fp16", "onnx", "int8"):
        _, sizes[variant], restored = prepared_once(variant, "cpu")
        assert restored
    parameters = sum(parameter.numel() for parameter in network().parameters())
    assert 4 * parameters < sizes["fp32"] == sizes["channels_last"] < 4.6 * parameters
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["fused"] < sizes["fp32"]
    assert 4 * 0.9 * parameters < sizes["onnx"]  # the weights are in the file
    assert sizes["int8"] < 0.6 * sizes["onnx"]


@pytest.mark.parametrize("variant", ["fp32", "fused", "bf16+channels_last"])
def test_flags_are_restored(variant):
    before = flags()
    with prepare(variant, network(), CPU, calibration) as prepared:
        assert flags() == before
        with prepared.switched():
            prepared.forward(torch.zeros(1, 3, 32, 32))
        assert flags() == before
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), prepare(variant, network(), CPU, calibration):
            raise error
        assert flags() == before


def test_flags_are_restored_when_preparing_fails(monkeypatch):
    def fail(build):
        raise KeyboardInterrupt

    monkeypatch.setitem(PARTS, "fp32", (Kind.PRECISION, fail))
    before = flags()
    with pytest.raises(KeyboardInterrupt), prepare("fp32", network(), CPU, calibration):
        pass
    assert flags() == before


def raising(error, cause=None):
    def part(variant):
        raise error from cause

    return Kind.PRECISION, part


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, ValueError])
def test_a_network_that_an_engine_refuses_is_unsupported(monkeypatch, error):
    refused = raising(RuntimeError("while converting"), error("no such operator"))
    monkeypatch.setitem(PARTS, "fp32", refused)
    told = f"^can't be prepared: {error.__name__}: no such operator$"
    with (
        pytest.raises(Unsupported, match=told),
        prepare("fp32", network(), CPU, calibration),
    ):
        pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left"),
        MemoryError(),
        torch.OutOfMemoryError("1 GB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 28992 vs 28880"),
        RuntimeError("CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_what_the_machine_lacks_is_no_refusal(monkeypatch, error):
    monkeypatch.setitem(PARTS, "fp32", raising(error))
    with pytest.raises(type(error)), prepare("fp32", network(), CPU, calibration):
        pass
    monkeypatch.setitem(PARTS, "fp32", raising(RuntimeError("while writing"), error))
    with (
        pytest.raises(RuntimeError, match="while writing"),
        prepare("fp32", network(), CPU, calibration),
    ):
        pass


@pytest.mark.parametrize("ours", [True, False])
def test_a_fault_of_ours_is_no_refusal(monkeypatch, ours):
    """What a library raises for a network, of the same type, is one."""
    where = registry.__file__ if ours else "library.py"
    code = compile("def part(variant):\n    variant.no_such_thing", where, "exec")
    exec(code, space := {})
    monkeypatch.setitem(PARTS, "fp32", (Kind.PRECISION, space["part"]))
    with (
        pytest.raises(AttributeError if ours else Unsupported, match="no_such_thing"),
        prepare("fp32", network(), CPU, calibration),
    ):
        pass


def test_all_but_tf32_is_true_fp32():
    with prepare("channels_last", network(), CPU, calibration) as prepared, prepared.switched():
        inside = flags()
    assert {value for key, value in inside.items() if "precision" in key} == {"ieee"}
    assert precision.convolution_error(CPU) < 1e-5


def older_switches():
    """Read what compilers and exporters read, which raises where newer switches contradict it."""
    backends = torch.backends
    matmul = torch.get_float32_matmul_precision()
    return matmul, backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("wanted", ["ieee", "tf32"])
@pytest.mark.parametrize(
    ("before", "value"),
    [
        *(("set_float32_matmul_precision", one) for one in ("highest", "high", "medium")),
        *(("cudnn.allow_tf32", one) for one in (False, True)),
        *(("cuda.matmul.allow_tf32", one) for one in (False, True)),
    ],
)
def test_no_older_switch_contradicts_the_newer_ones(wanted, before, value):
    """Whatever a user has set: all agree within, and are as before after it."""
    at_first = {key: flag for key, flag in flags().items() if "precision" in key}
    older = older_switches()
    try:
        if before == "set_float32_matmul_precision":
            torch.set_float32_matmul_precision(value)
        else:
            owner, _, name = before.rpartition(".")
            setattr(attrgetter(owner)(torch.backends), name, value)
        set_by_user = flags(), older_switches()
        for error in (None, KeyboardInterrupt):
            with (
                pytest.raises(error) if error else nullcontext(),
                precision.matmul_precision(wanted),
            ):
                inside = {flag for key, flag in flags().items() if "precision" in key}
                assert inside == {wanted}
                tf32 = wanted == "tf32"
                assert older_switches() == ("high" if tf32 else "highest", tf32, tf32)
                if error:
                    raise error
            assert (flags(), older_switches()) == set_by_user
    finally:
        torch.set_float32_matmul_precision(older[0])
        torch.backends.cudnn.allow_tf32 = older[1]
        for key, flag in at_first.items():
            attrgetter(key.rpartition(".")[0])(torch.backends).fp32_precision = flag
    assert older_switches() == older


def test_a_contradiction_of_a_users_switches_is_no_error():
    """Whoever sets the newer switch alone has an older one that can't be read."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with precision.matmul_precision("ieee"):
            assert older_switches() == ("highest", False, False)
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before


@pytest.mark.parametrize("variant", ["fp32", "fused", "channels_last", "bf16", "autocast_bf16"])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_older_switches_can_be_read_within_a_variant(variant, device):
    with prepare(variant, network(), torch.device(device), calibration) as prepared:
        older = older_switches()
        with prepared.switched():
            assert older_switches() == ("highest", False, False)
        assert older_switches() == older


@on_a_gpu
def test_the_proof_tells_fp32_from_tf32():
    device = torch.device("cuda")
    with prepare("fp32", network(), device, calibration) as prepared, prepared.switched():
        assert precision.found(precision.convolution_error(device)) == "ieee"
    with prepare("tf32", network(), device, calibration) as prepared, prepared.switched():
        assert precision.found(precision.convolution_error(device)) == "tf32"
        assert older_switches() == ("high", True, True)


def test_a_variants_flags_never_leak_into_another(monkeypatch):
    """Two are ready side by side; each has its own flags while it is called, and only then."""

    def half_precision(variant):
        variant.switch(partial(precision.matmul_precision, "tf32"))
        assert flags()["cuda.matmul.fp32_precision"] == "tf32"  # for later parts, too

    monkeypatch.setitem(PARTS, "half", (Kind.PRECISION, half_precision))
    before = flags()
    with (
        prepare("half", network(), CPU, calibration) as half,
        prepare("fp32", network(), CPU, calibration) as whole,
    ):
        for _ in range(2):
            for prepared, wanted in ((half, "tf32"), (whole, "ieee")):
                assert flags() == before
                with prepared.switched():
                    assert flags()["cuda.matmul.fp32_precision"] == wanted
                    assert flags()["cudnn.benchmark"]
        with pytest.raises(KeyboardInterrupt), half.switched():
            raise KeyboardInterrupt
        assert flags() == before


class Small(nn.Module):
    """A network that compiles in a second or two, and counts the calls that are not compiled."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, width)
        self.eager = 0

    def forward(self, images):
        if not torch.compiler.is_compiling():
            self.eager += 1
        return self.linear(images.flatten(1)).relu()


@pytest.mark.slow
def test_ten_compiled_networks_of_one_class_stay_compiled_side_by_side():
    """Beyond eight, Dynamo calls networks of one class eagerly, and says nothing."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    images = torch.zeros(1, 3, 32, 32)
    networks = [Small(width).eval() for width in range(10, 20)]
    with ExitStack() as stack, torch.inference_mode(mode=False):
        ready = [stack.enter_context(prepare("compile", one, CPU, calibration)) for one in networks]
        graphs = counters["stats"]["unique_graphs"]
        for prepared in ready * 2:
            with prepared.switched(), torch.inference_mode():
                prepared.forward(images)
    assert graphs == counters["stats"]["unique_graphs"] == 10  # no second compilation
    assert not counters["graph_break"]
    assert [one.eager for one in networks] == [0] * 10


@pytest.mark.parametrize(
    ("variant", "error", "found", "wanted"),
    [
        ("fp32", 1e-7, "ieee", "ieee"),
        ("fused+fp16", 1e-6, "ieee", "ieee"),
        ("fused+tf32", 1e-3, "tf32", "tf32"),
        ("tf32+cuda_graph", 3e-4, "tf32", "tf32"),
        ("fp32", 1e-3, "tf32", "ieee"),
        ("tf32", 1e-7, "ieee", "tf32"),
    ],
)
def test_a_wrong_precision_is_found_out(variant, error, found, wanted):
    assert precision.found(error) == found
    assert precision.wanted(variant) == wanted


def test_a_trainings_determinism_does_not_slow_a_measurement():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with prepare("fp32", network(), CPU, calibration) as prepared, prepared.switched():
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_names_are_put_in_order():
    assert check("compile+fp16") == check("fp16+compile") == "fp16+compile"
    assert check("fp32+fused") == "fused"
    assert check("fp32") == "fp32"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fp23", "variants=fp23: no such variant; did you mean fp32?"),
        ("fp16+compil", "variants=fp16+compil: no such variant; did you mean compile?"),
        ("", "variants=: no such variant"),
        ("fp16+bf16", "variants=fp16+bf16: must be one of fp16 and bf16"),
        ("compile+cuda_graph", "variants=compile+cuda_graph: must be one of"),
        ("tensorrt+compile", "variants=tensorrt+compile: must be one of"),
        ("onnx+fp16", "variants=onnx+fp16: must be onnx without fp16"),
        ("int8+onnx", "variants=int8+onnx: must be one of"),
        (
            "int8+channels_last",
            "variants=int8+channels_last: must be int8 without channels_last",
        ),
        ("fused+fused", "variants=fused+fused: must be one of"),
    ],
)
def test_names_that_make_no_sense(name, message):
    with pytest.raises(UserError) as caught:
        check(name)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "variant", ["tf32", "cuda_graph", "fp16+cuda_graph", "compile_max_autotune", "fp16+tensorrt"]
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what a machine without a GPU says")
def test_what_needs_a_gpu_says_so(variant):
    with (
        pytest.raises(Unsupported, match="needs a GPU"),
        prepare(variant, network(), CPU, calibration),
    ):
        pass


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with (
        pytest.raises(Unsupported, match=r"needs .*pip install '.*onnx"),
        prepare("onnx", network(), CPU, calibration),
    ):
        pass


def test_adding_a_variant_takes_one_line(monkeypatch):
    def doubled(build):
        inner = build.forward
        build.forward = lambda images: 2 * inner(images)

    monkeypatch.setitem(PARTS, "doubled", (Kind.RUNTIME, doubled))
    assert check("doubled+fused") == "fused+doubled"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = 2 * network()(images)
    (found,), _ = logits_of("doubled", network(), [images])
    assert_close(found, expected, 1e-6)


# --- What is shipped, in several processes -----------------------------------------------------


def small(seed):
    torch.manual_seed(seed)
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *pooled).eval()


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=pytest.mark.slow if name == "aot" else ()) for name in FORMATS],
)
def test_what_one_process_has_shipped_another_loads(variant, tmp_path):
    """It neither exports nor calibrates."""
    logits = []
    for seed, images in ((0, calibration), (1, None)):
        try:
            with (
                prepare(variant, small(seed), CPU, images, kept=tmp_path / "kept") as prepared,
                prepared.switched(),
                torch.inference_mode(),
            ):
                logits.append(prepared.forward(IMAGES[0][:1]).clone())
        except Unsupported as error:
            pytest.skip(str(error))
    assert torch.equal(*logits)


def test_a_failed_export_leaves_nothing_for_other_processes(tmp_path, monkeypatch):
    def fail(variant, path):
        path.write_bytes(b"half")
        raise RuntimeError

    monkeypatch.setattr(onnx, "export_onnx", fail)
    with (
        pytest.raises(Unsupported),
        prepare("onnx", small(0), CPU, calibration, kept=tmp_path / "kept"),
    ):
        pass
    assert not [*tmp_path.iterdir()]
