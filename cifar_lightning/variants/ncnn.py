"""ncnn, converted by pnnx."""

import subprocess

import torch

from cifar_lightning.system.environment import installation
from cifar_lightning.variants.context import (
    Call,
    Format,
    Unsupported,
    VariantContext,
    example_images,
    on_arrays,
)
from cifar_lightning.variants.folding import folded_where_traceable
from cifar_lightning.variants.onnx import silenced


def load_ncnn(path: str, threads: int) -> Call:
    """Load a network with ncnn, in fp32; its weights lie beside it, in a file ending on .bin."""
    import ncnn
    import numpy

    network = ncnn.Net()
    network.opt.num_threads = threads
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = False
    network.opt.use_fp16_arithmetic = network.opt.use_bf16_storage = False
    network.load_param(path)
    network.load_model(path.removesuffix("param") + "bin")

    def one(image: numpy.ndarray) -> numpy.ndarray:
        extractor = network.create_extractor()
        extractor.input("in0", ncnn.Mat(image))
        return numpy.array(extractor.extract("out0")[1])[None]

    def call(images: numpy.ndarray) -> numpy.ndarray:
        if len(images) == 1:
            return one(images[0])
        return numpy.concatenate([one(image) for image in images])

    return call


NCNN = Format(("model.ncnn.param", "model.ncnn.bin"), load_ncnn, ("ncnn",))


def use_ncnn(variant: VariantContext) -> None:
    """Convert with pnnx and run with ncnn."""
    if variant.device.type != "cpu":
        raise Unsupported("is run on the CPU")
    try:
        import ncnn  # noqa: F401
        import pnnx
    except ImportError as error:
        raise Unsupported(f"needs {error.name}: {installation('ncnn')}") from error
    param, weights = variant.ship(NCNN)
    traced = variant.folder() / "traced.pt"
    with silenced(), torch.no_grad():
        network = folded_where_traceable(variant.network)
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
    if converted.returncode or not weights.exists():
        said = (converted.stderr or converted.stdout).strip().splitlines()
        raise RuntimeError(f"pnnx: {said[-1] if said else f'status {converted.returncode}'}")
    variant.forward = on_arrays(load_ncnn(str(param), torch.get_num_threads()))
    variant.first_calls()
