"""What an export folder needs to be timed where only numpy and the engine are installed."""

import inspect
import json
from functools import partial

from cifar_lightning.benchmark.candidates import REFERENCE, Source, of_network
from cifar_lightning.benchmark.load import RunData
from cifar_lightning.benchmark.record import environment_of
from cifar_lightning.config.protocols import BENCH, PROTOCOL_VERSION
from cifar_lightning.deploy import bench
from cifar_lightning.deploy.card import Exported
from cifar_lightning.deploy.wanted import CPU, Wanted
from cifar_lightning.runs.carried_over import CarriedOver
from cifar_lightning.runs.measurement import Measurement
from cifar_lightning.system import environment
from cifar_lightning.variants import registry

MEASURED_THERE = ("device", "hardware", "engines", "environment")


def for_boards(
    source: Source, wanted: Wanted, exported: Exported, data: RunData
) -> dict[str, str | bytes]:
    """Make ``bench.py``, what it has to know, and ResNet-8's files for the same engine."""
    calibration = partial(data.calibration, None)
    reference = of_network(REFERENCE, wanted.variant, threads=1)
    with registry.prepare(
        wanted.name, reference.build(), CPU, calibration, opset=wanted.opset
    ) as prepared:
        files = {
            path.name.replace("model", REFERENCE, 1): path.read_bytes() for path in prepared.files
        }
    network = source.network
    assert network is not None
    told = {
        "files": exported.files,
        "reference": [*files],
        "load": wanted.form.load.__name__,
        "packages": wanted.form.packages,
        "classes": network.classes,
        "mean": network.mean,
        "std": network.std,
        "measurement": _measurement(source, exported),
    }
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    return {**files, f"model-{wanted.name}.json": text, "bench.py": bench_source()}


def bench_source() -> str:
    """Write ``bench.py``, which loads the files of any engine."""
    loads = {form.load.__name__: form.source for form in registry.FORMATS.values()}
    names = ", ".join(f'"{name}": {name}' for name in loads)
    ending = f'if __name__ == "__main__":\n    main({{{names}}})\n'
    return "\n\n".join([inspect.getsource(bench), *loads.values(), ending])


def _measurement(source: Source, exported: Exported) -> dict[str, object]:
    """Say of a measurement what is known before it is made."""
    candidate, known = source.candidate, exported.evaluated.measurement
    accuracy = None if known is None else known.test_acc
    origin = None
    if known is not None and accuracy is not None:
        origin = known.carried_over or CarriedOver(known.device, known.engines, known.benchmark)
    blank = Measurement(
        run=str(candidate.run),
        variant=candidate.variant,
        status="ok",
        reason=None,
        device="",
        hardware="",
        threads=1,
        clock="perf_counter",
        protocol=BENCH,
        protocol_version=PROTOCOL_VERSION,
        test_acc=accuracy,
        carried_over=origin,
        size_bytes=exported.size_bytes,
        code=environment.code(),
        environment=environment_of(CPU),
        recipe=candidate.recipe,
        engines={},
        candidate=candidate.key,
        weights=candidate.weights,
        files=dict(exported.digests),
    )
    told: dict[str, object] = json.loads(blank.to_json())
    return {key: value for key, value in told.items() if key not in MEASURED_THERE}
