"""What is OpenVINO's own; `test_engines` has what all engines have to do."""

import time
from hashlib import sha256
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import needs_packages_of
from test_engines import CPU, calibration, network

from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.system.cores import torch_threads, usable_cores
from cifar_lightning.variants import openvino, quantization
from cifar_lightning.variants.context import Unsupported, VariantContext
from cifar_lightning.variants.registry import prepare


@pytest.fixture
def ov():
    needs_packages_of("openvino")
    import openvino as package

    return package


@pytest.mark.parametrize("threads", [1, 2])
def test_only_so_many_threads_compute(ov, threads):
    if threads > usable_cores():
        pytest.skip("needs two cores")
    image = torch.randn(1, 3, 32, 32)
    with torch_threads(threads), prepare("openvino", network(), CPU, calibration) as prepared:
        times = {one.id: one.user_time for one in psutil.Process().threads()}
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            prepared.forward(image)
        busy = [one for one in psutil.Process().threads() if one.user_time > times.get(one.id, 0.0)]
    assert 1 <= len(busy) <= threads


def test_the_file_says_its_precision_and_what_it_is_of(ov):
    told = {"run": "a run", "classes": '["automobile & \\"car\\"", "Rübe"]'}
    for variant, precision in (("openvino", "f32"), ("openvino_bf16", "bf16")):
        with prepare(variant, network(), CPU, calibration, told) as prepared:
            model = ov.Core().read_model(prepared.files[0])
            weights = prepared.files[1].stat().st_size
        info = {key: model.get_rt_info(["model_info", key]).value for key in (*told, "precision")}
        assert info == told | {"precision": precision}
        # fp32's: else it would be written in fp16 and be another network.
        assert weights > 4 * sum(one.numel() for one in network().parameters()) * 0.9


def test_equal_networks_give_equal_files(ov):
    """Although the process has made other operations between."""
    found = []
    for _ in range(2):
        with prepare("openvino_int8", network(), CPU, calibration) as prepared:
            found.append([sha256(path.read_bytes()).hexdigest() for path in prepared.files])
    assert found[0] == found[1]


def test_int8_is_computed_in_int8(ov):
    with prepare("openvino_int8", network(), CPU, calibration) as prepared:
        compiled = ov.Core().compile_model(prepared.files[0], "CPU")
    kinds = [
        operation.get_rt_info()["runtimePrecision"].value
        for operation in compiled.get_runtime_model().get_ordered_ops()
        if operation.get_rt_info()["layerType"].value == "Convolution"
    ]
    assert "u8" in kinds


def test_bf16_needs_a_processor_that_has_it(monkeypatch):
    monkeypatch.setattr(openvino, "cpu_features", lambda: frozenset({"avx512f"}))
    monkeypatch.setattr(openvino, "_import_openvino", lambda variant: None)
    with (
        pytest.raises(Unsupported, match="needs a processor with bf16"),
        prepare("openvino_bf16", network(), CPU, calibration),
    ):
        pass


@pytest.mark.parametrize(
    ("features", "marked"),
    [({"avx2"}, True), ({"avx2", "avx_vnni"}, False), ({"asimddp"}, False), (set(), False)],
)
def test_a_processor_without_int8_instructions_is_marked(features, marked, monkeypatch):
    """What the system does not tell is not held against it."""
    monkeypatch.setattr(quantization, "cpu_features", lambda: frozenset(features))
    variant = SimpleNamespace(device=CPU, notes={})
    variant.need_cpu = lambda: VariantContext.need_cpu(variant)
    quantization.quantized(variant)
    assert variant.exact is False
    measurement = SimpleNamespace(
        status="ok",
        protocol="full",
        ended="converged",
        converged=True,
        delegated=None,
        has_figures=True,
        test_acc=90.0,
        notes=variant.notes,
        environment=SimpleNamespace(contradiction=None),
        gpu=SimpleNamespace(marks=[]),
    )
    marks = ["no int8 instructions"] if marked else []
    assert Measurement.marks.fget(measurement) == marks
