"""TensorRT, which torch-tensorrt gives torch.compile as a compiler."""

import torch

from cifar_lightning.variants.compiled import compile_forward
from cifar_lightning.variants.context import Unsupported, VariantContext


def use_tensorrt(variant: VariantContext) -> None:
    """Compile with TensorRT, in the network's own types; what it can't convert stays with torch."""
    variant.need_gpu()
    try:
        import torch_tensorrt  # noqa: F401  # tells torch.compile of itself
    except ImportError as error:
        same = ".".join(torch.__version__.split(".")[:2])  # each release is built for one of torch
        raise Unsupported(f"needs {error.name}: pip install 'torch-tensorrt=={same}.*'") from error
    options = {
        "disable_tf32": torch.backends.cuda.matmul.fp32_precision != "tf32",
        "min_block_size": 1,  # operations that are worth an engine
        "pass_through_build_failures": True,  # else the network would run in torch, in silence
        "timing_cache_path": str(variant.folder() / "timing.bin"),  # from scratch each time
    }
    compile_forward(variant, backend="torch_tensorrt", options=options)
