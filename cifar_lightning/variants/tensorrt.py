"""TensorRT, by torch-tensorrt."""

import torch
from torch import Tensor

from cifar_lightning.variants.context import Forward, Unsupported, VariantContext
from cifar_lightning.variants.torch_export import Called


def use_tensorrt(variant: VariantContext) -> None:
    """Build an engine for each shape of images, in the network's own types.

    Operations that TensorRT can't execute stay with torch.
    """
    variant.need_gpu()
    try:
        import torch_tensorrt
    except ImportError as error:
        same = ".".join(torch.__version__.split(".")[:2])  # each release is built for one of torch
        raise Unsupported(f"needs {error.name}: pip install 'torch-tensorrt=={same}.*'") from error
    called = Called(variant).eval()
    timings = variant.folder() / "timings"  # from scratch for each variant
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"

    def build(images: Tensor) -> Forward:
        with torch.inference_mode(mode=False), torch.no_grad():  # tensors of that mode stay outside
            engine: Forward = torch_tensorrt.compile(
                called,
                ir="dynamo",
                inputs=[torch_tensorrt.Input(tuple(images.shape))],
                disable_tf32=not tf32,
                min_block_size=1,  # operations that are worth an engine
                pass_through_build_failures=True,  # else torch would execute them all, in silence
                timing_cache_path=str(timings),
            )
        return engine

    variant.build_by_shape(build)
