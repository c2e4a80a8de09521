"""ncnn, converted by pnnx."""

import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torchvision.models.shufflenetv2 import channel_shuffle

from cifar_lightning.variants.context import (
    Array,
    Call,
    Format,
    Unsupported,
    VariantContext,
    example_images,
    needing,
    on_arrays,
)
from cifar_lightning.variants.folding import folded_where_traceable
from cifar_lightning.variants.onnx import silenced


def load_ncnn(path: str, threads: int) -> Call:
    """Load a network for one image with ncnn, in fp32; a file ending on .bin has its weights."""
    import ncnn
    import numpy

    network = ncnn.Net()
    network.opt.num_threads = threads
    network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
    network.load_param(path)
    network.load_model(path.removesuffix("param") + "bin")

    def call(images: Array) -> Array:
        if len(images) > 1:
            return numpy.concatenate([call(image[None]) for image in images])
        extractor = network.create_extractor()
        extractor.input("in0", ncnn.Mat(images[0]))
        return numpy.array(extractor.extract("out0")[1])[None]

    return call


class _KnownShuffle(TorchFunctionMode):
    """Shuffle channels as torchvision does: pnnx knows torch's own shuffle for no layer."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        known = channel_shuffle if func is torch.channel_shuffle else func
        return known(*args, **kwargs or {})


NCNN = Format(("model.ncnn.param", "model.ncnn.bin"), load_ncnn, ("ncnn",))


def use_ncnn(variant: VariantContext) -> None:
    """Convert with pnnx and run with ncnn."""
    variant.need_cpu()
    with needing("ncnn"):
        import ncnn  # noqa: F401
        import pnnx  # noqa: F401
    param, _ = variant.ship(NCNN, partial(_convert, variant))
    variant.forward = on_arrays(load_ncnn(str(param), torch.get_num_threads()))
    variant.first_calls()


def _convert(variant: VariantContext, param: Path, weights: Path) -> None:
    import pnnx

    traced = variant.folder() / "traced.pt"
    with silenced(), torch.no_grad():
        network = folded_where_traceable(variant.network)
        with _KnownShuffle():
            torch.jit.trace(network, example_images(1)).save(traced)
    converted = subprocess.run(
        [
            pnnx.EXEC_PATH,
            traced,
            "inputshape=[1,3,32,32]",
            "fp16=0",
            f"ncnnparam={param}",
            f"ncnnbin={weights}",
        ],
        cwd=traced.parent,  # what else it writes
        capture_output=True,
        text=True,
    )
    if converted.returncode < 0:
        raise OSError(f"pnnx was ended by signal {-converted.returncode}")
    if converted.returncode or not weights.exists():
        said = (converted.stderr or converted.stdout).strip().splitlines()
        raise RuntimeError(f"pnnx: {said[-1] if said else f'status {converted.returncode}'}")
    kinds = {line.split()[0] for line in param.read_text().splitlines()[2:]}
    if unknown := sorted(kind for kind in kinds if not kind.isalnum()):
        # It would crash: what pnnx makes no layer of keeps the name that it has in torch.
        raise Unsupported(f"ncnn has no layer for {', '.join(unknown)}")
