"""What `make perf` and `make gpu-check` measure is derived, not listed by hand."""

import subprocess
import sys

from conftest import ROOT

from cifar_lightning.variants import registry
from perf import gpu_check


def test_the_gpu_check_takes_every_backbone_and_part():
    found = gpu_check.backbones()
    there = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")}
    assert found.keys() == there - {"timm"}  # which needs a name first
    assert sum(p.numel() for p in found["mobilenetv3"]().parameters()) == 1_528_106
    assert gpu_check.VARIANTS[0] == "fp32"  # the baseline of the speed-ups
    assert {*registry.PARTS} <= {*gpu_check.VARIANTS}
    for name in gpu_check.VARIANTS:
        assert registry.check(name) == name


def test_the_gpu_check_needs_no_hydra():
    """A machine with a GPU has its own torch, and seldom the packages that configure a training."""
    absent = ("hydra", "omegaconf", "lightning", "torchmetrics", "sklearn", "tabulate", "onnx")
    blocked = f"import sys; sys.modules.update(dict.fromkeys({absent}));"
    check = "from perf import gpu_check; [build() for build in gpu_check.backbones().values()]"
    subprocess.run([sys.executable, "-c", blocked + check], cwd=ROOT, check=True)
