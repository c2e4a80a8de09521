import copy
from dataclasses import replace

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from cifar_lightning.runs.results import rows_of
from cifar_lightning.runs.run import Run
from cifar_lightning.training.build import build
from cifar_lightning.training.distillation import Distillation

SMALL = (*TINY, "batch_size=128", "optim.lr=0.2", "benchmark.variants=[]")
STUDENT = (*SMALL, "epochs=1", "distill=kd", "precision=bf16-mixed")


def test_the_loss_is_the_papers():
    torch.manual_seed(0)
    images = torch.randn(5, 3, 2, 2)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    logits = torch.randn(5, 4, requires_grad=True)
    loss = torch.tensor(2.0)
    found = Distillation(teacher, "t", temperature=3.0, alpha=0.6)(images, logits, loss)
    p = functional.softmax(teacher(images) / 3, dim=1)
    q = functional.softmax(logits / 3, dim=1)
    distance = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(found, 0.4 * loss + 0.6 * 9 * distance)
    found.backward()
    assert logits.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_is_frozen_in_eval_mode_and_shared():
    norm = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten())
    distillation = Distillation(norm, "t", temperature=1.0, alpha=1.0)
    before = copy.deepcopy(norm.state_dict())
    distillation(torch.randn(4, 3, 1, 1) + 5, torch.randn(4, 3), torch.tensor(0.0))
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())
    assert copy.deepcopy(distillation) is distillation
    # What the teacher says itself is at no distance.
    images = torch.randn(4, 3, 1, 1)
    assert distillation(images, norm(images), torch.tensor(9.0)) == pytest.approx(0.0, abs=1e-6)


def test_a_teacher_sees_what_the_student_sees(resolved, tmp_path):
    """In training the very images of the batch, whatever was done to them; else nothing."""
    config, _ = resolved(*TINY)
    classifier = build(config, tmp_path).classifier
    seen = []

    class Teacher(nn.Module):
        def forward(self, images):
            seen.append(images)
            return torch.zeros(len(images), 10)

    classifier.distillation = Distillation(Teacher(), "t", temperature=1.0, alpha=0.5)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    classifier.training_step((images, labels), 0)
    classifier.validation_step((images, labels), 0)
    classifier.test_step((images, labels), 0)
    (found,) = seen
    assert found is images


def test_a_student_learns_from_a_run(command, outputs):
    """A teacher whose ID looks like a number."""
    assert command(*SMALL, "epochs=1", "id=12e5").status == 0
    (folder,) = (outputs / "runs").iterdir()
    teacher = Run.load(folder)
    weights = (folder / "weights.safetensors").read_bytes()
    ended = command(*STUDENT, "distill.teacher=12e5", "ema=0.9", "augment=[crop,mixup]", "id=S")
    assert ended.status == 0, ended.err
    (student,) = (f for f in (outputs / "runs").iterdir() if f != folder)
    assert Run.load(student).config["distill"]["teacher"] == teacher.name
    (row,) = rows_of(student)
    assert row.teacher == teacher.name
    assert f"S (taught by {teacher.name[-8:]})" in ended.out
    assert (folder / "weights.safetensors").read_bytes() == weights
    checkpoint = torch.load(student / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [key for key in checkpoint["state_dict"] if "teacher" in key or "distill" in key]
    assert (
        load_file(student / "weights.safetensors").keys()
        == load_file(folder / "weights.safetensors").keys()
    )
    # By its name it is the same teacher, so the same run.
    again = command(*STUDENT, f"distill.teacher={teacher.name}", "ema=0.9", "augment=[crop,mixup]")
    assert "is finished" in again.out

    for wrong, line in {
        "distill.teacher=X": "distill.teacher=X: no such run in",
        "distill.temperature=0": "distill.temperature=0: must be a number above 0",
        "distill.alpha=2": "distill.alpha=2: must be 0 to 1",
        "data.mean=[0.1,0.1,0.1]": f"distill.teacher={teacher.name}: must be data.mean=",
        "data.split_seed=1": f"distill.teacher={teacher.name}: must be data.split_seed=1,",
        "data.val_fraction=0.2": f"distill.teacher={teacher.name}: must be data.val_frac",
    }.items():
        refused = command(*STUDENT, "distill.teacher=12e5", wrong)
        assert refused.status == 2
        assert refused.err.startswith(f"error: {line}"), refused.err
    other = {name: teacher.config[name] | {"num_classes": 7} for name in ("data", "model")} | {
        "augment": {}
    }
    names = [str(number) for number in range(7)]
    replace(teacher, config=teacher.config | other, classes=names).save(folder)
    refused = command(*STUDENT, "distill.teacher=12e5")
    assert "must be data.num_classes=10, its is 7" in refused.err
    replace(teacher, data_fingerprint="0" * 16).save(folder)
    refused = command(*STUDENT, "distill.teacher=12e5")
    assert refused.status == 2
    assert "its are 0000000000000000" in refused.err
    replace(teacher, status="interrupted").save(folder)
    assert (
        "is interrupted, needed is a finished run" in command(*STUDENT, "distill.teacher=12e5").err
    )
    missing = command(*STUDENT)
    assert missing.status == 2
    assert "distill.teacher" in missing.err
    assert len(list((outputs / "runs").iterdir())) == 2
