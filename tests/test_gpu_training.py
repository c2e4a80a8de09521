"""Training runs on a GPU, on real digits."""

import re
import subprocess
import sys

import pytest
import torch
from lightning import Callback

pytest.importorskip("hydra", reason="needs Hydra, which commands are made of")
from conftest import ROOT, TINY
from safetensors.torch import load_file
from test_experiment import only_run, stop_in_epoch
from test_processes import assert_one_row, start

from cifar_lightning.benchmark.evaluate import evaluate
from cifar_lightning.benchmark.load import load_data
from cifar_lightning.benchmark.network import load_backbone
from cifar_lightning.runs.gpu import Fp32Precision
from cifar_lightning.runs.run import Run
from cifar_lightning.training.averaging import EMA
from cifar_lightning.training.build import build
from cifar_lightning.training.module import ImageClassifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

# 20 steps an epoch, after two of which ResNet-8 knows most digits.
SMALL = (
    "data=digits",
    "augment=crop",
    "augment.crop.padding=2",
    "batch_size=64",
    "epochs=2",
    "benchmark.variants=[]",
    "trainer.accelerator=gpu",
)
RESNET = ("model=resnet8", "model.dropout=0.1", "optim.lr=0.2")
CIFARNET = ("model=cifarnet", "model.channels=[16,32]", "scheduler=linear")
EVERYTHING = ("ema=0.9", "data.device=gpu", "+optim.fused=true", "trainer.benchmark=true")


def train(command, outputs, *settings):
    ended = command(*SMALL, *settings, f"outputs={outputs}")
    assert ended.status == 0, ended.err
    folder = only_run(outputs)
    return folder, Run.load(folder)


@pytest.mark.parametrize(
    "settings",
    [
        (*RESNET, "precision=32-true"),
        (*RESNET, "precision=bf16-mixed", "ema=0.9"),
        (*RESNET, "precision=16-mixed", "+trainer.gradient_clip_val=5"),
        (*RESNET, "precision=16-mixed", *EVERYTHING),
        (*RESNET, "precision=bf16-mixed", "augment=[crop,cutout,mixup]", *EVERYTHING),
        (*CIFARNET, "data.val_fraction=0", "augment=[flip_alternating,crop]", *EVERYTHING),
    ],
    ids=lambda settings: ",".join(settings[3:]),
)
def test_an_epoch(settings, command, outputs):
    """What it ends with is what its weights do on a CPU."""
    folder, run = train(command, outputs, *settings)
    assert run.machine.device == torch.cuda.get_device_name()
    ampere = torch.cuda.get_device_capability() >= (8, 0)
    assert run.fp32_precision == Fp32Precision("tf32" if ampere else "ieee", "ieee")
    predictions = evaluate(load_backbone(folder), load_data(folder), torch.device("cpu"))
    assert predictions.accuracy == pytest.approx(run.test_acc, abs=2)
    assert run.test_acc > 25
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(one.isfinite().all() for one in weights.values())


class NoWaiting(Callback):
    """Lets whatever waits for the GPU fail, from one batch of the first epoch to another."""

    FIRST, LAST = 6, 18  # before, images are drawn; GracefulShutdown looks at the epoch's end
    seen = ()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx in (self.FIRST, self.LAST):
            mode = "error" if batch_idx == self.FIRST else "default"
            torch.cuda.set_sync_debug_mode(mode)
            self.seen += (mode,)


@pytest.mark.parametrize("place", ["cpu", "gpu"])
def test_no_step_waits_for_the_gpu(place, resolved, tmp_path):
    augment = "augment=[flip,crop,cutout,mixup]"
    settings = ("ema=0.9", "precision=bf16-mixed", f"data.device={place}", augment)
    config, _ = resolved(*SMALL, *RESNET, *settings, "epochs=1")
    experiment, watch = build(config, tmp_path), NoWaiting()
    experiment.trainer.callbacks.append(watch)
    try:
        experiment.trainer.fit(experiment.classifier, datamodule=experiment.data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.seen == ("error", "default")


def test_the_average_lies_on_the_gpu_and_is_not_waited_for(command, outputs, monkeypatch):
    places, update = [], EMA.on_train_batch_end

    def watched(self, trainer, *rest):
        torch.cuda.set_sync_debug_mode("error")
        update(self, trainer, *rest)
        torch.cuda.set_sync_debug_mode("default")
        places.extend(tensor.device.type for tensor in self.average.values())

    monkeypatch.setattr(EMA, "on_train_batch_end", watched)
    try:
        train(command, outputs, *RESNET, "ema=0.9", "epochs=1")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {*places} == {"cuda"}


def first_loss(folder):
    """The training loss of the first epoch."""
    lines = (folder / "train.log").read_text().splitlines()
    (line,) = [one for one in lines if re.search("epoch 1 of .* train loss", one)]
    return float(line.partition("train loss ")[2].partition(",")[0])


@pytest.mark.parametrize(
    ("mode", "network"),
    [
        ("true", (*RESNET, "model.dropout=0")),
        ("reduce-overhead", (*RESNET, "model.dropout=0")),
        ("reduce-overhead", CIFARNET),
    ],
    ids=["default", "graphs", "graphs of a plain network"],
)
def test_compiled(mode, network, command, outputs, tmp_path, monkeypatch):
    """With what is kept between steps: the average, BatchNorm's statistics, losses and counts."""
    from torch._dynamo.utils import counters
    from torch._inductor.cudagraph_trees import get_manager

    graphs, end = [], ImageClassifier.on_train_epoch_end

    def watched(self):
        end(self)
        manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
        graphs.append(len(manager.roots) if manager is not None else 0)

    settings = (*network, "precision=bf16-mixed", *EVERYTHING)
    eager, _ = train(command, tmp_path / "eager", *settings)
    counters.clear()
    monkeypatch.setattr(ImageClassifier, "on_train_epoch_end", watched)
    folder, run = train(command, outputs, *settings, f"compile={mode}")
    assert folder.name == eager.name
    assert first_loss(folder) == pytest.approx(first_loss(eager), rel=0.05)
    assert run.test_acc > 25
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert graphs[-1] > 0 or mode == "true"


@pytest.mark.parametrize("settings", [(), ("ema=0.9", "data.device=gpu", "+optim.fused=true")])
def test_a_continued_run_equals_an_uninterrupted_one(
    settings, command, outputs, tmp_path, monkeypatch
):
    settings = (*SMALL, *RESNET, *settings, "epochs=3", "trainer.deterministic=true")
    reference = tmp_path / "reference"
    assert command(*settings, f"outputs={reference}").status == 0
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2)
        assert command(*settings).status == 130
    again = command(*settings)
    assert again.status == 0, again.err
    assert "continuing after epoch 2" in again.out
    ours, theirs = only_run(outputs), only_run(reference)
    one, other = (load_file(folder / "weights.safetensors") for folder in (ours, theirs))
    assert all(torch.equal(one[name], other[name]) for name in other)
    checkpoints = [
        torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
        for folder in (ours, theirs)
    ]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(*(one[part] for one in checkpoints), rtol=0, atol=0)
    assert Run.load(ours).val_acc == Run.load(theirs).val_acc
    assert Run.load(ours).test_acc == Run.load(theirs).test_acc


CONTEXT = """
import ctypes, sys
sys.path.insert(0, ".")
import train
train.main()
driver = ctypes.CDLL("libcuda.so.1")
flags, active = ctypes.c_uint(), ctypes.c_int()
assert driver.cuInit(0) == 0
assert driver.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active)) == 0
print("contexts", active.value)
"""


def test_a_training_run_on_the_cpu_leaves_the_gpu_alone(outputs, forked):
    settings = (*TINY, "epochs=1", "batch_size=256", "benchmark.variants=[]", f"outputs={outputs}")
    done = subprocess.run(
        [sys.executable, "-c", CONTEXT, *settings], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "contexts 0"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus(outputs):
    start(outputs, "trainer.accelerator=gpu", "benchmark.variants=[]", "precision=bf16-mixed")
    assert_one_row(only_run(outputs))
