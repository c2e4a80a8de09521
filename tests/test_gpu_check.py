"""What is measured on a GPU beside runs: lists that are derived, tables that are kept, steps."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import types

import pytest
import torch
from conftest import ROOT

from cifar_lightning.benchmark.nvml import GPUMonitor
from cifar_lightning.errors import DeviceLost, NotFinite
from cifar_lightning.models.resnet import resnet_cifar
from cifar_lightning.variants import registry
from perf import gpu_batches, gpu_check, gpu_end_to_end, gpu_networks
from perf.gpu_batches import Energy, Point, energy_of, integrated
from perf.gpu_networks import Network, failed, prepare
from perf.gpu_table import run

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
COMMANDS = [gpu_check, gpu_batches, gpu_end_to_end]
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DEVICES = [CPU, pytest.param(CUDA, marks=GPU)]


def tiny():
    return resnet_cifar(10, 8, width=0.25, output_stride=4, dropout=0, bn_momentum=0.1, bn_eps=1e-5)


@pytest.fixture
def quick(monkeypatch):
    """Let batches be few and their windows short."""
    monkeypatch.setattr(gpu_batches, "SIZES", (1, 4))
    monkeypatch.setattr(gpu_batches, "WARM_S", 0.01)
    monkeypatch.setattr(gpu_batches, "WINDOW_S", 0.05)


def ready(stack, variant="fp32", device=CPU):
    network = prepare(stack, "tiny", tiny, variant, device)
    assert isinstance(network, Network)
    return network


@pytest.fixture
def stack():
    with gpu_check.ExitStack() as stack:
        yield stack


# --- What there is to measure ----------------------------------------------------------------


def test_the_gpu_check_takes_every_backbone_and_part():
    found = gpu_networks.backbones()
    there = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")}
    assert found.keys() == there - {"timm"}  # which needs a name first
    assert tuple(found)[: len(gpu_networks.FIRST)] == gpu_networks.FIRST
    assert sum(p.numel() for p in found["mobilenetv3"]().parameters()) == 1_528_106
    assert gpu_check.VARIANTS[0] == "fp32"  # the baseline of the speed-ups
    assert {*registry.PARTS} <= {*gpu_check.VARIANTS}
    for name in (*gpu_check.VARIANTS, *gpu_batches.VARIANTS, *gpu_end_to_end.VARIANTS):
        assert registry.check(name) == name
    assert {*gpu_batches.BACKBONES, *gpu_end_to_end.BACKBONES} <= found.keys()


def test_backbones_have_the_form_that_is_executed_and_the_same_weights():
    build = gpu_networks.backbones()["repvgg"]
    one, other = build(), build()
    assert not any("branch" in name for name, _ in one.named_modules())
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_most_telling_comes_first():
    names = [f"n{number}" for number in range(6)]
    found = gpu_check.parts_of_work(names, ["fp32", "fused", "fp16+compile", "tensorrt"])
    quick, compiled, slow = ["fp32", "fused"], ["fp32", "fp16+compile"], ["fp32", "tensorrt"]
    assert found[:4] == [(name, quick) for name in names[:4]]
    assert found.index(("n0", compiled)) < found.index(("n5", quick))
    assert found[-1] == ("n5", slow)
    assert len(found) == 3 * len(names)


def test_the_gpu_commands_need_no_hydra():
    """A machine with a GPU has its own torch, and seldom the packages that configure a training."""
    absent = (
        "hydra", "omegaconf", "antlr4", "lightning", "torchmetrics", "sklearn", "tabulate", "onnx",
        "plotly", "matplotlib",
    )  # fmt: skip
    blocked = f"import sys; sys.modules.update(dict.fromkeys({absent}));"
    check = "from perf import gpu_check, gpu_batches, gpu_end_to_end, gpu_networks;"
    build = "[build() for build in gpu_networks.backbones().values()]"
    subprocess.run([sys.executable, "-c", blocked + check + build], cwd=ROOT, check=True)


# --- Commands --------------------------------------------------------------------------------


def call(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    run(module.main)


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "fp33"], "--variants=fp33: no such variant; did you mean fp32?"),
        (["--backbones", "resnet9"], "--backbones resnet9: no such backbone; did you mean"),
        (["--protocol", "slow"], "--protocol=slow: must be full, quick"),
        (["--quick"], "unrecognized arguments: --quick"),
        (["--device", "tpu"], "device=tpu: must be auto, "),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, module, arguments, message):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, module, *arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_a_machine_without_a_gpu_is_told_so(monkeypatch, capsys, module):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, module)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: there is no GPU that torch can use here\n"


def test_rows_are_printed_and_kept_benchmark_by_benchmark(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # its lock: others measure meanwhile
    path = tmp_path / "new" / "figures.json"
    rows = gpu_check.rows

    def interrupted(backbone, *rest):
        if backbone == "cifarnet":
            yield gpu_check.Row(backbone=backbone, variant="fp32")
            raise KeyboardInterrupt
        yield from rows(backbone, *rest)

    monkeypatch.setattr(gpu_check, "rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(
            monkeypatch, gpu_check, "--device", "cpu", "--protocol", "quick",
            "--backbones", "resnet8,cifarnet", "--variants", "fused,cuda_graph",
            "--json", str(path),
        )  # fmt: skip
    kept = json.loads(path.read_text())
    found = {(row["backbone"], row["variant"]): row for row in kept["rows"]}
    assert [*found] == [
        ("resnet8", "cuda_graph"), ("resnet8", "fp32"), ("resnet8", "fused"), ("cifarnet", "fp32")
    ]  # fmt: skip
    assert found["resnet8", "cuda_graph"]["reason"] == "needs a GPU"
    baseline, fused = found["resnet8", "fp32"], found["resnet8", "fused"]
    assert baseline["relative"]["centre"] == 1
    ratio = fused["latency"]["p50_ms"] / baseline["latency"]["p50_ms"]
    assert fused["relative"]["centre"] == pytest.approx(ratio, rel=0.5)
    assert fused["precision_error"] < 1e-5
    assert kept["versions"]["torch"] == torch.__version__.partition("+")[0]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines if line.startswith("| resnet8")] == [
        ["| resnet8", variant] for variant in ("cuda_graph", "fp32", "fused")
    ]


def test_one_that_fails_is_a_row_and_the_others_are_measured():
    def broken():
        raise ValueError("no | such width")

    (row,) = gpu_check.rows("tiny", broken, ["fp32"], CPU, gpu_check.PROTOCOLS["quick"])
    assert row.remark == "failed: ValueError: no | such width"


def test_a_gpu_that_fails_for_good_ends_it(monkeypatch):
    """Later figures would say nothing."""

    def broken(*_, **__):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch, "zeros", broken)
    with pytest.raises(DeviceLost):
        failed("resnet8", "fp16", ValueError("first"), CUDA)


@pytest.mark.parametrize("device", DEVICES)
def test_variants_are_timed(device):
    names = ["fp32", "cuda_graph"]
    found = {
        row.variant: row
        for row in gpu_check.rows("tiny", tiny, names, device, gpu_check.PROTOCOLS["quick"])
    }
    assert found["fp32"].latency.mean_ms > 0
    if device == CUDA:
        assert found["cuda_graph"].relative.centre < 1
        assert found["fp32"].wall_ms >= found["fp32"].latency.mean_ms
        assert found["fp32"].launches.device_ms > 0


# --- Batches and energy ----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_measured(quick, device):
    names = ["fp32", "cuda_graph"]
    energy = energy_of(device)
    rows = [*gpu_batches.rows("tiny", tiny, names, energy, device)]
    found = {(row.variant, row.batch): row for row in rows if row.status == "ok"}
    assert {batch for _, batch in found} == {1, 4}
    for (_, batch), row in found.items():
        assert row.images_per_s == pytest.approx(1000 * batch / row.call_ms)
        assert len(row.windows) == gpu_batches.WINDOWS
    if device == CPU:
        assert energy.source is None
        assert {row.millijoules for row in rows} == {None}
        assert {row.remark for row in rows} == {"", "unsupported: needs a GPU"}


def test_a_size_that_fails_leaves_the_others(quick, stack):
    def narrow():
        network = tiny()
        network.register_forward_pre_hook(lambda _, images: assert_small(images[0]))
        return network

    def assert_small(images):
        if len(images) > 1:
            raise RuntimeError("out of memory")

    rows = [*gpu_batches.rows("tiny", narrow, ["fp32"], energy_of(CPU), CPU)]
    assert [(row.batch, row.remark) for row in rows] == [
        (4, "failed: RuntimeError: out of memory"), (1, "")
    ]  # fmt: skip


def test_energy_is_read_where_the_counter_moves(quick, stack):
    """Its steps are coarse: what happened since the last one is in none of its readings."""
    images = 0

    def counted(network):
        nonlocal images
        images += 4
        return tiny_forward(network)

    network = ready(stack)
    tiny_forward = network.prepared.forward
    network.prepared.forward = counted
    point = Point(network, torch.rand(4, 3, 32, 32))
    counter = Energy("counter", lambda: 0.5 * (images // 20 * 20))
    for _ in range(2):
        point.measure(counter)
    assert point.row.millijoules == pytest.approx(500)
    still = Point(network, torch.rand(4, 3, 32, 32))
    still.measure(Energy("counter", lambda: 7.0))
    assert still.row.millijoules is None  # a window too short for its counter tells nothing


def test_joules_of_watts():
    seconds, watts = iter([0.0, 1.0, 3.0, 4.0]), iter([200.0, 200.0, None])
    read = integrated(lambda: next(watts), 100.0, lambda: next(seconds))
    assert [read(), read(), read()] == [150, 550, 750]  # a refused reading is as the one before


@pytest.mark.parametrize(
    ("counter", "power", "source", "joules"),
    [(12_000, 700_000, "counter", 12), (None, 0, "power", 0), (None, None, None, None)],
)
def test_what_tells_the_energy(monkeypatch, counter, power, source, joules):
    class NVMLError(Exception):
        pass

    def told(value):
        def query(handle):
            if value is None:
                raise NVMLError("not supported")
            return value

        return query

    pynvml = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlDeviceGetTotalEnergyConsumption=told(counter),
        nvmlDeviceGetPowerUsage=told(power),
    )
    monkeypatch.setattr(gpu_batches, "gpu_monitor", lambda device: GPUMonitor(pynvml, "1-2"))
    energy = energy_of(CUDA)
    assert (energy.source, energy.joules()) == (source, joules)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_takes_energy(stack):
    pytest.importorskip("pynvml", reason="needs the extra `gpu`")
    point = Point(ready(stack, device=CUDA), torch.rand(64, 3, 32, 32, device=CUDA))
    point.warm_up()
    point.measure(energy_of(CUDA))
    assert 1e-4 < point.row.millijoules < 1e3


# --- End to end ------------------------------------------------------------------------------


def test_pixels_are_normalised_as_in_training():
    from perf.input import loader_of  # needs Hydra and Lightning

    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    found = gpu_end_to_end.normaliser(CPU)(pixels)
    torch.testing.assert_close(found, loader_of({}).normalize(pixels))


@pytest.mark.parametrize("device", DEVICES)
def test_an_image_in_a_class_out(stack, device):
    torch.manual_seed(0)
    network = ready(stack, device=device)
    with network.conditions():
        found = {way: call() for way, call in gpu_end_to_end.ways(network, device)}
    assert found.pop("forward pass") is None
    assert len(found) == (2 if device == CUDA else 1)
    (label,) = {*found.values()}  # all say the same
    assert 0 <= label < 10


def test_all_ways_are_timed_by_the_wall_clock():
    protocol = gpu_check.PROTOCOLS["quick"]
    alone, whole = gpu_end_to_end.rows("tiny", tiny, ["fp32"], CPU, protocol)
    assert (alone.way, whole.way) == ("forward pass", "end to end")
    assert alone.latency.n > 1
    assert whole.rounds == alone.rounds


def test_a_way_to_train_that_fails_is_left_out_with_its_reason(capsys):
    from perf.interleaved import warmed_up  # reads the versions of Lightning and Hydra

    def diverges():
        raise NotFinite("the training loss is nan\nin step 2")

    sides = {"eager": lambda: lambda: 155.2, "graphs": diverges, "compiled": lambda: diverges}
    assert [*warmed_up(sides, "steps/s")] == ["eager"]
    eager, *failed = capsys.readouterr().out.splitlines()
    assert eager == "- eager: 155 steps/s, after 0 s"
    assert failed == [
        f"- {name}: failed: the training loss is nan" for name in ("graphs", "compiled")
    ]


# --- Steps -----------------------------------------------------------------------------------


@pytest.fixture
def steps(tmp_path):
    """Make a checkout whose Python writes down what it is called with."""
    (tmp_path / "perf").mkdir()
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "perf" / "gpu_steps.sh", tmp_path / "perf")
    (tmp_path / "tests" / "test_a.py").write_text("@pytest.mark.gpu\n")
    (tmp_path / "tests" / "test_b.py").write_text("import nothing\n")
    python, temporary = tmp_path / "python", tmp_path / "temporary"
    temporary.mkdir()
    python.write_text(
        '#!/bin/bash\n[ "$1" = -c ] && exit "${NO_GPU:-0}"\n'
        'for one in "$@"; do [[ $one = outputs=* ]] && mkdir -p "${one#*=}/runs/a/checkpoints" &&\n'
        '  echo "{}" | tee "${one#*=}/runs/a/run.json" > "${one#*=}/runs/a/checkpoints/last.ckpt"\n'
        'done\necho "called: $*"\nexec sleep "${SLEEP:-0}"\n'
    )
    python.chmod(0o755)

    def step(*arguments, **variables):
        environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "TMPDIR": str(temporary)}
        return subprocess.run(
            ["perf/gpu_steps.sh", *arguments],
            cwd=tmp_path, env=environment | variables, capture_output=True, text=True,
        )  # fmt: skip

    return step


@pytest.mark.parametrize(
    ("number", "name", "words"),
    [
        (
            "1",
            "tests",
            ["-m pytest -m gpu and not slow -n 6 ", "/tests.xml ", " -x tests/test_a.py"],
        ),
        ("2", "variants", ["-m perf.gpu_check --protocol quick --json ", "/variants.json -x"]),
        ("3", "batches", ["-m perf.gpu_batches --json ", "/batches.json -x"]),
        ("4", "end_to_end", ["-m perf.gpu_end_to_end --protocol quick --json ", ".json -x"]),
        ("5", "training", ["-m perf.throughput device=gpu -x"]),
        ("6", "fast94", ["train.py benchmark=quick outputs=", " experiment=[fast94,gpu] ", " -x"]),
        ("7", "best", ["train.py benchmark=quick outputs=", " experiment=best ", " -x"]),
    ],
)
def test_each_step_is_a_command_whose_output_is_kept(steps, tmp_path, number, name, words):
    done = steps(number, "out", "-x")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert (tmp_path / "out" / f"{name}.txt").read_text() == f"{line}\n"
    for word in words:
        assert word in line


def test_a_step_that_takes_too_long_is_cut_off_and_keeps_what_it_has(steps, tmp_path):
    done = steps("3", "out", LIMIT="0.3", SLEEP="60")
    assert done.returncode == 124
    called, cut = (tmp_path / "out" / "batches.txt").read_text().splitlines()
    assert called.startswith("called: -m perf.gpu_batches")
    assert cut == "cut off after 0.3 s"


@pytest.mark.parametrize(("limit", "checkpoints"), [("0", False), ("0.3", True)])
def test_a_training_step_keeps_what_it_takes_to_go_on(steps, tmp_path, limit, checkpoints):
    data = {"DATA": "/data/cifar", "MD5": "0a1b"}
    done = steps("6", "out", LIMIT=limit, SLEEP="0" if limit == "0" else "60", **data)
    assert "data.root=/data/cifar data.md5=0a1b" in done.stdout
    assert (tmp_path / "out" / "fast94.json").read_text() == "{}\n"
    listed = subprocess.run(
        ["tar", "-tzf", tmp_path / "out" / "fast94.tar.gz.0"], capture_output=True, text=True
    ).stdout
    assert "./runs/a/run.json" in listed
    assert ("checkpoints/last.ckpt" in listed) == checkpoints
    assert not [*(tmp_path / "temporary").iterdir()]


@pytest.mark.parametrize("arguments", [(), ("8", "out"), ("1",)])
def test_a_step_that_is_none_is_one_line(steps, arguments):
    done = steps(*arguments)
    assert done.returncode == 2
    assert done.stderr == (
        "usage: perf/gpu_steps.sh STEP FOLDER [ARGUMENT ...]: STEP must be 1 to 7\n"
    )


def test_tests_need_a_gpu(steps):
    done = steps("1", "out", NO_GPU="1")
    assert done.returncode == 2
    assert done.stderr == "error: there is no GPU that torch can use here\n"


def test_the_environments_python_comes_first(steps, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text("#!/bin/bash\necho of the environment\n")
    python.chmod(0o755)
    assert steps("3", "out", PYTHON="").stdout == "of the environment\n"
    assert steps("3", "out").stdout.startswith("called: ")
    python.unlink()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text("#!/bin/bash\necho of the system\n")
    (tmp_path / "bin" / "python3").chmod(0o755)
    found = steps("3", "out", PYTHON="", PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert found.stdout == "of the system\n"


def test_the_makefile_runs_the_tests_first():
    dry = subprocess.run(
        ["make", "-n", "gpu-check", "OUT=there", "ARGS=--protocol full"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert dry.splitlines() == [
        "LIMIT=0 perf/gpu_steps.sh 1 there", "LIMIT=0 perf/gpu_steps.sh 2 there --protocol full"
    ]  # fmt: skip
