"""What quantization to 8 bits has in common, whatever the engine."""

from cifar_lightning.system.processor import cpu_features
from cifar_lightning.variants.context import VariantContext

# Instructions that sum products of 8 bits in 32: of x86 and of ARM, as Linux calls them.
DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}


def quantized(variant: VariantContext) -> None:
    """Say that a variant is quantized for the CPU; note a processor on which that gains little.

    Raises:
        Unsupported: If it is to run elsewhere.
    """
    variant.need_cpu()
    variant.exact = False
    features = cpu_features()
    if features and not DOT_PRODUCTS & features:
        variant.notes["no_int8_instructions"] = "the processor has none that sum products of 8 bits"
