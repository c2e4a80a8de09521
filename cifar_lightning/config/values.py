"""What single values must be, in the words of the error of one that is not."""

import math
import re
from collections.abc import Callable
from typing import Any

from cifar_lightning.config.protocols import PROTOCOLS

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
GRAPH_MODES = ("reduce-overhead", "max-autotune")  # of torch.compile; on a GPU by CUDA graphs
COMPILE_MODES = ("default", *GRAPH_MODES)
# Of ONNX: those that torch's exporter writes; an older one it leaves as 18, without a word.
OPSETS = range(18, 24)


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number; true and false are none."""
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def is_integer(value: object) -> bool:
    """Tell whether a value is an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _number(holds: Callable[[Any], bool]) -> Callable[[object], bool]:
    return lambda value: is_number(value) and holds(value)


def _integer(holds: Callable[[Any], bool]) -> Callable[[object], bool]:
    return lambda value: is_integer(value) and holds(value)


def _list_of(holds: Callable[[Any], bool], rising: bool = False) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if not isinstance(value, list) or not value or not all(map(holds, value)):
            return False
        return not rising or value == sorted(set(value))

    return check


def _at_least(least: int) -> tuple[Callable[[object], bool], str]:
    return _integer(lambda value: value >= least), f"an integer of at least {least}"


_POSITIVE = (_number(lambda v: v > 0), "a number above 0")
# Of a Beta distribution. Draws of smaller ones underflow in torch: 1/2, where 0 or 1 is meant.
LEAST_ALPHA = 0.01
_ALPHA = (_number(lambda v: v >= LEAST_ALPHA), f"a number of at least {LEAST_ALPHA}")
# A number of batches, or a fraction of all.
_LIMIT = _number(lambda v: v >= 1 if isinstance(v, int) else 0 < v <= 1)
_BELOW_ONE = (_number(lambda v: 0 <= v < 1), "0 or more, below 1")

# Each key that is there must satisfy its rule; the text says what it must be.
RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "epochs": _at_least(1),
    "batch_size": _at_least(2),
    "seed": (_integer(lambda v: 0 <= v < 2**32), "an integer from 0 to 2^32 - 1"),
    "label_smoothing": _BELOW_ONE,
    "ema": (lambda v: v is None or _number(lambda n: 0 < n < 1)(v), "null, or above 0 and below 1"),
    "precision": (lambda v: v in PRECISIONS, ", ".join(PRECISIONS)),
    "compile": (
        lambda v: isinstance(v, bool) or v in COMPILE_MODES,
        f"false, true, {', '.join(COMPILE_MODES)}",
    ),
    "id": (
        lambda v: v is None or bool(re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,63}", str(v), re.ASCII)),
        "up to 64 letters, digits and ._+-, a letter or digit first",
    ),
    "optim.lr": _POSITIVE,
    "optim.momentum": _BELOW_ONE,
    "optim.weight_decay": (_number(lambda v: v >= 0), "a number of 0 or more"),
    "scheduler.warmup": _BELOW_ONE,
    "model.dropout": _BELOW_ONE,
    "model.bn_momentum": (_number(lambda v: 0 < v <= 1), "above 0, at most 1"),
    "model.bn_eps": _POSITIVE,
    "data.val_fraction": _BELOW_ONE,
    "distill.temperature": _POSITIVE,
    "distill.alpha": (_number(lambda v: 0 <= v <= 1), "0 to 1"),
    "augment.cutout.size": (_integer(lambda v: 1 <= v <= 32), "1 to 32, the image's size"),
    "augment.progressive.start": (_integer(lambda v: 8 <= v <= 32), "8 to 32, the image's size"),
    "augment.progressive.until": (_number(lambda v: 0 < v <= 1), "above 0, at most 1"),
    "augment.mixup.alpha": _ALPHA,
    "augment.mixup_growing.alpha": _ALPHA,
    "augment.cutmix.alpha": _ALPHA,
    "benchmark.variants": (lambda v: isinstance(v, list), "a list, such as [fp32,onnx]"),
    "benchmark.threads": (
        _list_of(_integer(lambda n: n >= 1)),
        "a list of integers of at least 1, such as [1,2]",
    ),
    "benchmark.protocol": (lambda v: v in list(PROTOCOLS), ", ".join(PROTOCOLS)),
    "data.device": (lambda v: v in ("cpu", "gpu"), "cpu, gpu"),
    "data.num_workers": _at_least(0),
    "data.eval_batch_size": _at_least(1),
    "data.num_classes": _at_least(2),
    "data.connect_timeout": _POSITIVE,
    "trainer.accumulate_grad_batches": _at_least(1),
    "trainer.check_val_every_n_epoch": _at_least(1),
    "trainer.limit_train_batches": (_LIMIT, "an integer of at least 1, or a fraction up to 1.0"),
    "trainer.limit_val_batches": (
        lambda v: v == 0 or _LIMIT(v),
        "an integer of 0 or more, or a fraction up to 1.0",
    ),
    "trainer.max_steps": _at_least(1),
    "n_trials": _at_least(1),
    "rungs": (
        _list_of(_integer(lambda n: n >= 1), rising=True),
        "a list of rising numbers of epochs, such as [4,12,36]",
    ),
    "hours": _POSITIVE,
    "targets": (
        lambda v: v == [] or _list_of(_number(lambda n: 0 <= n <= 100))(v),
        "a list of 0 to 100, percent, such as [85,90]",
    ),
    "final_minutes": _POSITIVE,
    "final_seeds": (
        lambda v: v == [] or _list_of(_integer(lambda n: 0 <= n < 2**32))(v),
        "a list of integers from 0 to 2^32 - 1, such as [0,1,2]",
    ),
    "top": _at_least(1),
    "min_acc": (_number(lambda v: 0 <= v <= 100), "0 to 100, percent"),
    "max_ms": (lambda v: v is None or _POSITIVE[0](v), "a number above 0"),
    "stat": (lambda v: v in ("mean", "p95"), "mean, p95"),
    "processes": (lambda v: v is None or _at_least(1)[0](v), f"null or {_at_least(1)[1]}"),
    "opset": (
        lambda v: v is None or (is_integer(v) and v in OPSETS),
        f"{OPSETS[0]} to {OPSETS[-1]}",
    ),
}
