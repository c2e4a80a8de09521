"""Arguments of Lightning's Trainer, callbacks and loggers: each has its effect or is refused."""

import csv
import inspect
from datetime import timedelta
from types import SimpleNamespace

import lightning
import pytest
import torch
import yaml
from conftest import TINY
from lightning.pytorch.callbacks import EarlyStopping, Timer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_lightning.benchmark.load import load_data
from cifar_lightning.config import rules
from cifar_lightning.errors import UserError
from cifar_lightning.runs import identity
from cifar_lightning.runs.run import Run
from cifar_lightning.training.arguments import REFUSED
from cifar_lightning.training.build import build
from cifar_lightning.training.callbacks import GracefulShutdown
from cifar_lightning.training.module import ImageClassifier
from cifar_lightning.training.progress import bar_wanted

# 1,294 training images: 5 steps an epoch.
SMALL = (*TINY, "batch_size=256", "benchmark.variants=[]", "optim.lr=0.2")
STEPS = 5
# What has its effect, each with the test that shows it.
WORKING = {
    "accelerator": "in every command of the tests",
    "accumulate_grad_batches": "test_the_schedule_ends_where_the_training_ends",
    "benchmark": "given to Lightning as it is",
    "check_val_every_n_epoch": "test_validation_in_every_second_epoch",
    "detect_anomaly": "test_handed_on",
    "deterministic": "given to Lightning as it is",
    "devices": "tests/test_processes.py",
    "enable_progress_bar": "test_a_bar_is_for_those_who_see_it",
    "fast_dev_run": "test_a_batch_of_each_split_leaves_nothing",
    "gradient_clip_algorithm": "test_handed_on",
    "gradient_clip_val": "test_gradients_are_clipped",
    "inference_mode": "test_handed_on",
    "limit_train_batches": "test_the_schedule_ends_where_the_training_ends",
    "limit_val_batches": "test_without_validation_the_last_checkpoint_is_kept",
    "log_every_n_steps": "test_several_loggers_and_callbacks",
    "max_epochs": "the key epochs",
    "max_steps": "test_the_schedule_ends_where_the_training_ends",
    "max_time": "test_a_limit_of_time",
    "min_epochs": "test_early_stopping",
    "min_steps": "test_handed_on",
    "num_nodes": "given to Lightning as it is",
    "precision": "the key precision",
    "profiler": "tests/test_experiment.py",
    "strategy": "tests/test_processes.py",
}


def build_checked(config, folder):
    rules.check(config)
    return build(config, folder)


def run_of(outputs):
    (folder,) = (outputs / "runs").iterdir()
    return folder


def last(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_every_argument_of_the_trainer_is_known():
    signature = set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}
    assert signature == REFUSED.keys() | WORKING.keys()
    assert not REFUSED.keys() & WORKING.keys()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_can_not_work_is_refused_with_the_reason(name, resolved, tmp_path):
    config, _ = resolved(*TINY, f"+trainer.{name}=1")
    with pytest.raises(UserError) as caught:
        build(config, tmp_path)
    assert str(caught.value) == f"trainer.{name}=1: can't be set: {REFUSED[name]}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("+trainer.check_val_every_n_epoch=5",), "check_val_every_n_epoch=5: must be 1 to 3"),
        (("+trainer.gradient_clip_algorithm=value",), "needs trainer.gradient_clip_val"),
        (("+trainer.min_epochs=2",), "trainer.min_epochs: nothing ends this training run early"),
        (("+trainer.min_steps=2", "+trainer.max_steps=3"), "together with trainer.max_steps"),
        (("+trainer.min_epochs=4", "callbacks=early_stopping"), "must be at most 3"),
        (("+trainer.log_every_n_steps=2",), "metrics are logged once an epoch"),
        (("+trainer.max_time=soon",), "trainer.max_time: .*DD:HH:MM:SS"),
        (("+trainer.max_time=00:00:00:00",), "trainer.max_time=00:00:00:00: must be above 0"),
        (("+trainer.max_steps=0",), "trainer.max_steps=0: must be an integer of at least 1"),
        (("+trainer.limit_train_batches=0",), "limit_train_batches=0: must be an integer"),
        (("+trainer.limit_val_batches=1.5",), "limit_val_batches=1.5: must be"),
        (("callbacks=early_stopping", "data.val_fraction=0"), "there is no validation"),
        (("callbacks=early_stopping", "+trainer.limit_val_batches=0"), "there is no validation"),
        (
            ("callbacks=early_stopping", "callbacks.early_stopping.monitor=acc"),
            "callbacks.early_stopping.monitor=acc: must be train/loss",
        ),
        (("callbacks=early_stopping", "+callbacks.early_stopping.patient=3"), "mean patience"),
        (("compile=reduce-overhead",), "false or true: CUDA graphs need a GPU"),
        (("compile=fast",), "compile=fast: must be false, true, default, reduce-overhead, max-"),
        (
            ("compile=max-autotune", "+trainer.accumulate_grad_batches=2"),
            "compile=max-autotune: must be false or true where trainer.accumulate_grad_batches",
        ),
        (
            ("precision=16-mixed", "+optim.fused=true", "+trainer.gradient_clip_val=1"),
            "gradient_clip_val=1: must be null where precision=16-mixed and optim.fused",
        ),
        (("logger=wandb",), "logger=wandb: needs the package wandb: pip install wandb"),
        (("logger=[tensorboard,mlflow]",), "logger=mlflow: needs the package mlflow"),
    ],
)
def test_what_can_not_work_is_refused_before_data_are_read(settings, message, resolved, tmp_path):
    config, _ = resolved(*TINY, "epochs=3", *settings)
    with pytest.raises(UserError, match=message):
        build_checked(config, tmp_path)


def test_handed_on(resolved, tmp_path):
    config, _ = resolved(
        *TINY, "callbacks=early_stopping", "+trainer.min_steps=7", "+trainer.inference_mode=false",
        "+trainer.detect_anomaly=true", "+trainer.gradient_clip_val=1",
        "+trainer.gradient_clip_algorithm=value",
    )  # fmt: skip
    trainer = build(config, tmp_path).trainer
    assert trainer.min_steps == 7
    assert trainer.test_loop.inference_mode is False
    assert trainer._detect_anomaly is True
    assert trainer.gradient_clip_algorithm == "value"


def test_what_enters_a_runs_name(resolved):
    def name(*overrides):
        return identity.run_name(*resolved(*TINY, *overrides))

    plain = name()
    for same in ("logger=csv", "logger=[tensorboard,csv]", "+trainer.enable_progress_bar=false"):
        assert name(same) == plain
    others = [
        name(other)
        for other in (
            "callbacks=early_stopping", "+trainer.max_steps=5", "+trainer.max_time=00:00:00:20",
            "+trainer.limit_train_batches=1", "+trainer.limit_train_batches=1.0",
        )
    ]  # fmt: skip
    assert len({plain, *others}) == 6


@pytest.mark.parametrize(
    ("settings", "steps", "epoch"),
    [
        (("+trainer.max_steps=7",), 7, 1),  # in the middle of an epoch
        (("+trainer.limit_train_batches=2",), 6, 2),
        (("+trainer.accumulate_grad_batches=2",), 9, 2),
    ],
)
def test_the_schedule_ends_where_the_training_ends(settings, steps, epoch, command, outputs):
    ended = command(*SMALL, "epochs=3", *settings)
    assert ended.status == 0, ended.err
    folder = run_of(outputs)
    state = last(folder)
    assert (state["global_step"], state["epoch"]) == (steps, epoch)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-8)
    assert Run.load(folder).val_acc is not None
    assert Run.load(folder).test_acc is not None


def test_a_limit_of_time(command, outputs, monkeypatch):
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, stage="train": self.steps)
    monkeypatch.setattr(Timer, "steps", 0.0, raising=False)
    step = ImageClassifier.training_step

    def counted(self, batch, batch_idx):
        Timer.steps += 1.0  # seconds
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", counted)
    ended = command(*SMALL, "epochs=300", "+trainer.max_time=00:00:00:07")
    assert ended.status == 0, ended.err
    assert f"ended early, after step 7 of {300 * STEPS} in epoch 2" in ended.out
    assert last(run_of(outputs))["global_step"] == 7
    assert Run.load(run_of(outputs)).val_acc is not None
    assert timedelta(seconds=7).total_seconds() == Timer.steps


def test_validation_in_every_second_epoch(command, outputs, monkeypatch):
    """Interrupted before the first one, the run goes on; the best is of a validated epoch."""
    settings = (*SMALL, "epochs=3", "+trainer.check_val_every_n_epoch=2")
    with monkeypatch.context() as patch:
        step = ImageClassifier.training_step

        def stopped(self, batch, batch_idx):
            if self.current_epoch == 1:
                raise KeyboardInterrupt
            return step(self, batch, batch_idx)

        patch.setattr(ImageClassifier, "training_step", stopped)
        assert command(*settings).status == 130
    ended = command(*settings)
    assert ended.status == 0, ended.err
    assert "continuing after epoch 1" in ended.out
    folder = run_of(outputs)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert (best["epoch"], last(folder)["epoch"]) == (1, 2)
    assert Run.load(folder).val_acc is not None


def test_without_validation_the_last_checkpoint_is_kept(command, outputs):
    ended = command(*SMALL, "epochs=1", "+trainer.limit_val_batches=0")
    assert ended.status == 0, ended.err
    run = Run.load(run_of(outputs))
    assert run.val_acc is None
    assert run.test_acc is not None


def test_gradients_are_clipped(command, outputs):
    settings = ("epochs=1", "+trainer.gradient_clip_val=1e-9", "optim.weight_decay=0")
    assert command(*SMALL, *settings).status == 0
    weights = last(run_of(outputs))["state_dict"]["backbone.fc.weight"]
    module = ImageClassifier.load_from_checkpoint(
        run_of(outputs) / "checkpoints" / "best.ckpt", weights_only=True
    )
    torch.manual_seed(0)
    fresh = ImageClassifier(module.hparams["model"]).backbone.fc.weight
    torch.testing.assert_close(weights.contiguous(), fresh.detach(), rtol=0, atol=1e-6)


def test_a_fraction_without_a_batch_is_refused_before_training(command, outputs):
    ended = command(*SMALL, "epochs=1", "+trainer.limit_val_batches=0.1")
    assert ended.status == 2
    assert "trainer.limit_val_batches=0.1: must be an integer, or a fraction of" in ended.err
    assert not list(outputs.glob("runs/*"))


def test_a_batch_of_each_split_leaves_nothing(command, outputs):
    ended = command(*SMALL, "epochs=3", "+trainer.fast_dev_run=true")
    assert ended.status == 0, ended.err
    assert "nothing is kept: no run, no row, no checkpoint" in ended.out
    assert not outputs.exists()
    refused = command("-m", *SMALL, "+trainer.fast_dev_run=true", "seed=0,1")
    assert refused.status == 2
    assert "trainer.fast_dev_run=True: must be false in a sweep" in refused.err


def test_batches_of_a_training_without_a_test_leave_the_test_split_alone(command, monkeypatch):
    monkeypatch.setattr(ImageClassifier, "test_step", None)
    ended = command(*SMALL, "epochs=3", "+trainer.fast_dev_run=true", "test=false")
    assert ended.status == 0, ended.err
    assert "fast_dev_run: training and validation work" in ended.out


@pytest.mark.parametrize(
    ("terminal", "disabled", "wanted"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_a_bar_is_for_those_who_see_it(terminal, disabled, wanted, monkeypatch, resolved, tmp_path):
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setenv("TQDM_DISABLE", disabled)
    assert bar_wanted() == wanted
    for settings, there in ((), wanted), (("+trainer.enable_progress_bar=false",), False):
        config, _ = resolved(*TINY, *settings)
        bar = build(config, tmp_path).trainer.progress_bar_callback
        assert (bar is not None) == there


def test_a_line_an_epoch(command, outputs):
    ended = command(*SMALL, "epochs=2")
    lines = [line for line in ended.out.splitlines() if line.startswith("epoch ")]
    assert [line.partition(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert "val loss " in lines[1]
    assert lines[1].partition("; val")[0] in (run_of(outputs) / "train.log").read_text()
    beside = command(*SMALL, "epochs=2", "seed=1", "+trainer.enable_progress_bar=true")
    assert "epoch 1 of 2:" not in beside.out
    assert "Epoch 2/2" in beside.out  # Lightning's bar
    logs = [path.read_text() for path in (outputs / "runs").glob("*-s1-*/train.log")]
    assert "epoch 2 of 2: train loss" in logs[0]


def test_early_stopping(command, outputs, monkeypatch):
    """A run that is killed between its early end and its test does not train on."""
    settings = (
        *SMALL, "epochs=9", "callbacks=early_stopping", "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=1", "+trainer.min_epochs=3",
    )  # fmt: skip

    def killed(self, trainer, module):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(GracefulShutdown, "on_test_start", killed)
        assert command(*settings).status == 130
    folder = run_of(outputs)
    assert last(folder)["epoch"] == 2
    ended = command(*settings)
    assert ended.status == 0, ended.err
    assert last(folder)["global_step"] == 3 * STEPS
    assert Run.load(folder).status == "finished"


def test_early_stopping_goes_on_counting(command, outputs, monkeypatch):
    settings = (
        *SMALL, "epochs=9", "callbacks=early_stopping", "callbacks.early_stopping.patience=3",
        "callbacks.early_stopping.min_delta=1",
    )  # fmt: skip
    with monkeypatch.context() as patch:
        step = ImageClassifier.training_step

        def stopped(self, batch, batch_idx):
            if self.current_epoch == 2:
                raise KeyboardInterrupt
            return step(self, batch, batch_idx)

        patch.setattr(ImageClassifier, "training_step", stopped)
        assert command(*settings).status == 130
    assert command(*settings).status == 0
    state = last(run_of(outputs))
    (counted,) = (v for k, v in state["callbacks"].items() if k.startswith(EarlyStopping.__name__))
    assert (counted["wait_count"], state["epoch"]) == (3, 3)


def test_several_loggers_and_callbacks(command, outputs, monkeypatch):
    settings = (
        *SMALL, "epochs=3", "logger=[tensorboard,csv]", "callbacks=[early_stopping,lr_monitor]",
        "+trainer.log_every_n_steps=1",
    )  # fmt: skip
    with monkeypatch.context() as patch:
        step = ImageClassifier.training_step

        def stopped(self, batch, batch_idx):
            if (self.current_epoch, batch_idx) == (2, 3):
                raise KeyboardInterrupt
            return step(self, batch, batch_idx)

        patch.setattr(ImageClassifier, "training_step", stopped)
        assert command(*settings).status == 130
    ended = command(*settings)
    assert ended.status == 0, ended.err
    folder = run_of(outputs)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    lines = list(csv.DictReader((folder / "csv" / "metrics.csv").open()))
    for tag in ("train/loss", "val/acc", "lr-SGD/pg1"):
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        rows = [(int(line["step"]), float(line[tag])) for line in lines if line.get(tag)]
        assert [step for step, _ in rows] == [step for step, _ in points]
        assert [value for _, value in rows] == pytest.approx([value for _, value in points])
    assert len(events.Scalars("train/loss")) == 3
    assert yaml.safe_load((folder / "csv" / "hparams.yaml").read_text())["batch_size"] == 256


def test_without_tensorboard_its_pictures_are_left_out(command, outputs):
    ended = command(*SMALL, "epochs=1", "logger=csv")
    assert ended.status == 0, ended.err
    assert not (run_of(outputs) / "tensorboard").exists()
    assert (run_of(outputs) / "csv" / "metrics.csv").exists()


@pytest.mark.parametrize("settings", [(), ("ema=0.9",)])
def test_a_checkpoint_is_loaded_in_a_notebook(settings, command, outputs):
    assert command(*SMALL, "epochs=2", *settings).status == 0
    folder = run_of(outputs)
    path = folder / "checkpoints" / "best.ckpt"
    module = ImageClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    data = load_data(folder)
    trainer = lightning.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    (metrics,) = trainer.test(module, datamodule=data, verbose=False)
    assert 100 * metrics["test/acc"] == pytest.approx(Run.load(folder).test_acc, abs=1e-3)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["model"]["_target_"] = "os.getcwd"
    torch.save(content, path)
    with pytest.raises(UserError, match=r"model\._target_=os\.getcwd"):
        ImageClassifier.load_from_checkpoint(path, weights_only=True)
