"""Engines that are installed by themselves: their files, threads and what they lack."""

import copy
import ctypes
import inspect
import math
import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import ROOT, needs_packages_of
from test_results import MEASUREMENT
from torch import nn

from cifar_lightning.errors import UserError
from cifar_lightning.models import branched, plain, resnet, shufflenet
from cifar_lightning.models.interfaces import reparameterized
from cifar_lightning.models.timm import timm_network
from cifar_lightning.system.cores import torch_threads, usable_cores
from cifar_lightning.variants import executorch, ncnn, onnx, registry
from cifar_lightning.variants.context import Unsupported, VariantContext
from cifar_lightning.variants.registry import FORMATS, PARTS, check, prepare

CPU = torch.device("cpu")
OPENVINO = ["openvino", "openvino_bf16", "openvino_int8"]
PACKAGED = ["executorch", "executorch_int8", "ncnn", "litert", *OPENVINO]  # of their own
COMPILED = [pytest.param(name, marks=pytest.mark.slow) for name in ("aot", "fused+aot")]


def network():
    """Layers of all kinds that the project's networks have, few enough to compile in seconds."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=4, bias=False),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.GELU(),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.Hardsigmoid(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    with torch.no_grad():
        layers[3].bias -= 2  # where GELU falls: it and the max-pool can't change places
    return layers.eval()


def calibration():
    return torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def trained(build, **settings):
    """One of the project's networks, as it is executed; its BatchNorms have seen images."""
    torch.manual_seed(0)
    made = build(num_classes=10, bn_momentum=0.1, bn_eps=1e-5, **settings)
    with torch.no_grad():
        for _ in range(30):
            made(torch.randn(16, 3, 32, 32))
    return reparameterized(made.eval())


NETWORKS = {
    "resnet_cifar": partial(
        trained, resnet.resnet_cifar, depth=8, width=0.5, output_stride=4, dropout=0.0
    ),
    "repvgg": partial(
        trained, branched.repvgg, channels=[8, 16], depth=[2, 2], output_stride=4, dropout=0.0
    ),
    "cifarnet": partial(
        trained, plain.cifarnet, stem=8, stem_kernel=2, stem_stride=1, whiten=False,
        channels=[8, 16], depth=2, downsample="pool", activation="gelu", pool="max", scale=0.1111,
        dirac=False,
    ),
    "shufflenet_v2": partial(
        trained, shufflenet.shufflenet_v2, width=0.5, output_stride=8, dropout=0.0
    ),
    "timm": partial(
        trained, timm_network, name="test_byobnet", output_stride=8, dropout=0.0
    ),
}  # fmt: skip


@pytest.fixture(params=["onnx", "int8", *PACKAGED, *COMPILED])
def engine(request):
    needs_packages_of(request.param)
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("engine", FORMATS)
def test_each_format_computes_what_the_projects_networks_compute(engine, name):
    needs_packages_of(engine)
    if name == "timm":
        pytest.importorskip("timm", reason="needs the extra `timm`")
    # Logits of random weights are small differences of large numbers: int8 loses more of them.
    check_logits(engine, NETWORKS[name](), rough=0.25)


def test_each_call_gives_the_networks_logits(engine):
    check_logits(engine, network(), rough=0.1)


def check_logits(engine, reference, rough):
    """Of other images each time, one and many in turns: a buffer that is kept would show."""
    batches = [torch.randn(count, 3, 32, 32) for count in (1, 1, 7, 1, 100, 7, 1)]
    with prepare(engine, copy.deepcopy(reference), CPU, calibration) as prepared:
        with prepared.switched(), torch.inference_mode():
            found = [prepared.forward(batch).clone() for batch in batches]
        size = sum(path.stat().st_size for path in prepared.files)
        assert [path.name for path in prepared.files] == [*FORMATS[engine.split("+")[-1]].files]
        assert prepared.exact == (not engine.endswith(("int8", "bf16")))
        assert (prepared.delegated or 1.0) >= 0.9
        assert (prepared.delegated is not None) == engine.startswith("executorch")
    assert prepared.size_bytes == size > 0
    assert prepared.preparation_s > 0
    for logits, batch in zip(found, batches, strict=True):
        with torch.no_grad():
            expected = reference(batch)
        tolerance = 1e-4 if prepared.exact else rough
        assert logits.dtype == torch.float32
        assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_asked_for(engine, threads):
    """Some of them may be there from earlier calls.

    Each model of OpenVINO has two more, which start calls that nobody waits for.
    """
    idle = 2 if engine in OPENVINO else 0
    if threads > usable_cores():
        pytest.skip("needs two cores")
    image = torch.randn(1, 3, 32, 32).numpy()
    load = FORMATS[engine.split("+")[-1]].load
    with torch_threads(threads), prepare(engine, network(), CPU, calibration) as prepared:
        before = psutil.Process().num_threads()
        call = load(str(prepared.files[0]), threads)
        for _ in range(5):
            call(image)
        more = psutil.Process().num_threads() - before
    assert 0 <= more <= threads - 1 + idle


def test_programs_with_other_threads_take_turns():
    """ExecuTorch has one pool for all; each program is loaded anew when another's was used."""
    needs_packages_of("executorch")
    from executorch.extension.pybindings import portable_lib

    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network()(images)
    with (
        torch_threads(1),
        prepare("executorch", network(), CPU, calibration) as one,
        torch_threads(2),
        prepare("executorch", network(), CPU, calibration) as two,
        torch.inference_mode(),
    ):
        for prepared, threads in [(one, 1), (two, 2)] * 3:
            with prepared.switched():
                assert portable_lib._threadpool_get_thread_count() == threads
                torch.testing.assert_close(prepared.forward(images), expected)


def test_a_network_that_ncnn_has_no_layer_for_is_not_run(monkeypatch):
    """It would end the process: pnnx writes the name of torch's operation, and returns 0."""
    needs_packages_of("ncnn")
    monkeypatch.setattr(ncnn, "_KnownShuffle", nullcontext)
    with (
        pytest.raises(Unsupported, match=r"ncnn has no layer for aten::channel_shuffle"),
        prepare("ncnn", NETWORKS["shufflenet_v2"](), CPU, calibration),
    ):
        pass


def test_a_program_is_loaded_again_only_for_another_pool(monkeypatch, tmp_path):
    """On a stand-in of the engine."""
    loaded = []

    def load(path, threads):
        loaded.append(threads)
        return lambda images: images.reshape(len(images), -1)[:, :10]

    monkeypatch.setattr(executorch, "load_executorch", load)
    monkeypatch.setattr(executorch, "_pool", (0, object()))

    def part(variant):
        variant.ship(executorch.EXECUTORCH, Path.touch)
        executorch._run(variant)

    monkeypatch.setitem(PARTS, "executorch", (PARTS["executorch"][0], part))
    with torch_threads(1), prepare("executorch", network(), CPU, calibration) as one:
        for _ in range(3):
            with one.switched():
                one.forward(torch.zeros(1, 3, 32, 32))
        assert loaded == [1]
        with torch_threads(2), prepare("executorch", network(), CPU, calibration) as two:
            assert loaded == [1, 2]
            for prepared in (one, one, two, one):
                with prepared.switched():
                    prepared.forward(torch.zeros(1, 3, 32, 32))
        assert loaded == [1, 2, 1, 2, 1]


def test_only_a_programs_talk_is_left_out(capfd):
    """What its C++ writes, without Python, of cores and threads; also before an error."""
    with suppress(ValueError), executorch._without_talk():
        os.write(2, b"[cpuinfo_utils.cpp:71] Reading file\n[method.cpp:9] Missing operator\n")
        raise ValueError
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "[method.cpp:9] Missing operator\nlater\n"


@pytest.mark.slow
def test_a_program_is_loaded_without_talk():
    """In a process of its own, as its C++ says it once."""
    needs_packages_of("executorch")
    code = (
        "import sys; sys.path.append('tests'); from test_engines import *;"
        "prepare('executorch', network(), CPU, None).__enter__()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("variant", "package"),
    [
        ("executorch", "executorch"),
        ("executorch_int8", "executorch"),
        ("ncnn", "ncnn"),
        ("ncnn", "pnnx"),
        ("litert", "ai_edge_litert"),
        ("openvino", "openvino"),
        ("openvino", "onnxscript"),
        ("openvino_bf16", "openvino"),
        ("openvino_int8", "nncf"),
    ],
)
def test_what_is_not_installed_names_its_extra(variant, package, monkeypatch):
    for name in [one for one in sys.modules if one.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("ncnn", "pnnx", "executorch", "ai_edge_litert", "onnxscript", "openvino", "nncf"):
        stand_in = None if name == package else SimpleNamespace()
        monkeypatch.setitem(sys.modules, name, stand_in)
    extra = variant.partition("_")[0]
    with (
        pytest.raises(Unsupported, match=rf"needs {package}.*: pip install .*{extra}"),
        prepare(variant, network(), CPU, calibration),
    ):
        pass


@pytest.mark.parametrize("variant", PACKAGED)
def test_what_runs_on_the_cpu_alone_says_so(variant):
    context = SimpleNamespace(device=torch.device("cuda"))
    context.need_cpu = lambda: VariantContext.need_cpu(context)
    with pytest.raises(Unsupported, match="needs a CPU: device=cpu"):
        PARTS[variant][1](context)


@pytest.mark.parametrize("variant", PACKAGED)
def test_engines_of_their_own_take_fp32_alone(variant):
    assert check(f"{variant}+fused") == f"fused+{variant}"
    with pytest.raises(UserError, match=f"must be {variant} without fp16"):
        check(f"fp16+{variant}")


def test_an_aot_package_is_of_what_the_other_parts_made():
    assert check("aot+fp16+fused") == "fused+fp16+aot"
    assert registry.format_of("fused+fp16+aot") is FORMATS["aot"]


@pytest.mark.parametrize("name", ["aot", *PACKAGED])
def test_a_loader_stands_alone(name):
    """Its source, as cards and boards have it, is Python without names of this project."""
    form = FORMATS[name]
    parts = compile(form.source, name, "exec").co_consts
    code = next(part for part in parts if hasattr(part, "co_names"))
    names = {*code.co_names, *code.co_cellvars}
    assert not names & {"Array", "Call", "Format", "cifar_lightning"}
    assert "cifar_lightning" not in inspect.getsource(form.load)
    assert form.source.count("\n") <= 20


def test_operations_outside_the_delegate_are_marked():
    marks = [replace(MEASUREMENT, delegated=one).marks for one in (None, 1.0, 0.9, 0.874)]
    assert marks == [[], [], [], ["87% delegated"]]


def test_a_program_counts_its_operations():
    """Calls of a delegate and what is taken of their results are none."""
    graph = torch.fx.symbolic_trace(lambda one: torch.relu((one + 1).split(1)[0]).sin())
    assert executorch._count_operations(graph) == 2


class OnGPU:
    """Stands in for ONNX Runtime on a GPU: its bindings, and sums of images as logits."""

    def __init__(self):
        self.bindings, self.providers, self.entries = [], [], {}

    def SessionOptions(self):
        return SimpleNamespace(add_session_config_entry=lambda key, value: None)

    def RunOptions(self):
        return SimpleNamespace(add_run_config_entry=self.entries.__setitem__)

    def InferenceSession(self, path, options, providers):
        self.providers += providers
        return self

    def get_providers(self):
        return ["CUDAExecutionProvider"]

    def io_binding(self):
        bound = {"calls": []}

        def bind(name, device, number, kind, shape, pointer):
            assert (device, number, kind) == ("cuda", 0, "float32")
            bound["calls"].append(name)
            memory = (ctypes.c_float * math.prod(shape)).from_address(pointer)
            bound[name] = torch.frombuffer(memory, dtype=torch.float32).view(*shape)

        self.bindings.append(bound)
        return SimpleNamespace(bind_input=bind, bind_output=bind, bound=bound)

    def run_with_iobinding(self, binding, run_options):
        assert self.entries == {"disable_synchronize_execution_providers": "1"}
        assert run_options is not None
        sums = binding.bound["images"].flatten(1).sum(1, keepdim=True)
        binding.bound["logits"].copy_(sums.expand(-1, 10))


def test_onnx_runtime_on_a_gpu_binds_each_shape_once(monkeypatch):
    """On stand-ins: no machine with a GPU has had its package so far."""
    streams = []

    def stream(device):
        streams.append(device)
        return SimpleNamespace(cuda_stream=4711)

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    onnx._stream.cache_clear()
    device, built, switches = torch.device("cuda"), [], []
    for _ in range(2):
        engine = OnGPU()
        variant = SimpleNamespace(
            device=device, network=network(), build_by_shape=built.append, switch=switches.append
        )
        onnx._run_on_gpu(variant, engine, "model.onnx")
        ((name, settings),) = engine.providers
        assert name == "CUDAExecutionProvider"
        assert settings == {"device_id": 0, "user_compute_stream": "4711", "use_tf32": "0"}
    assert streams == [device]  # for both
    assert [switch.args for switch in switches] == [switches[0].args] * 2
    onnx._stream.cache_clear()

    one, many = torch.randn(1, 3, 32, 32), torch.randn(7, 3, 32, 32)
    calls = {1: built[1](one), 7: built[1](many)}
    for images in (one, one, many, one, torch.randn(1, 3, 32, 32), many.clone(), one):
        expected = images.flatten(1).sum(1, keepdim=True).expand(-1, 10)
        torch.testing.assert_close(calls[len(images)](images), expected)
    with_one, with_many = engine.bindings
    assert with_one["calls"] == ["logits", "images", "images", "images"]
    assert with_many["calls"] == ["logits", "images", "images"]


def test_onnx_runtime_for_a_gpu_is_not_installed_beside_the_other(monkeypatch):
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    cpu_only = SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", cpu_only)
    hint = "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
    with pytest.raises(Unsupported, match=hint):
        onnx.import_onnxruntime(torch.device("cuda"))
