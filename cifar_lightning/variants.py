"""Ways to execute a trained backbone, and what each of them ships.

A variant is made of parts joined by ``+``: ``fp32``, ``fused``, ``fp16+compile``. A part is one
function here that changes the `_Build` it is given, and one line in `PARTS`; of each kind there is
at most one, and they work in the order of `Kind`, whatever order they are written in.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from cifar_lightning import provenance
from cifar_lightning.errors import bad_value, chain, first_line_of, unknown_name

Forward = Callable[[Tensor], Tensor]

EXAMPLE_SHAPE = (1, 3, 32, 32)
IEEE_BELOW = 1e-5  # relative error of a convolution; TF32's is 1e-4 and more
MAX_EXPORT_ERROR = 1e-3  # of logits, between ONNX Runtime and torch in fp32

# NOTE: three switches, one by one. The global one has not reached convolutions in some releases,
# and once all three are set, touching the older `allow_tf32` raises.
_PRECISION_SWITCHES: tuple[Any, ...] = (
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]  # made at run time
    torch.backends.cudnn.rnn,
    torch.backends.cuda.matmul,
)


class Unsupported(Exception):
    """This device or installation can't run the variant; the text says why, in one line."""


@dataclass
class Prepared:
    """A network that is ready to be called.

    Attributes:
        forward: Maps normalised fp32 images (B, 3, 32, 32) on the device to fp32 logits
            (B, classes) there. The next call may overwrite them.
        size_bytes: Of the file that this variant ships.
        preparation_s: What happened once: compiling, capturing, exporting, calibrating.
        notes: Facts worth recording.
        eager: Whether torch calls the network's operations one by one.
    """

    forward: Forward
    size_bytes: int
    preparation_s: float | None
    notes: dict[str, Any]
    eager: bool


@dataclass
class _Build:
    """What the parts work on, one after the other.

    Attributes:
        network: Holds the weights that are shipped.
        forward: What is called; at first the network itself.
        device: Where it is called.
        calibration: Gives normalised training images (N, 3, 32, 32) on the CPU.
        stack: Ends with the variant.
        size_bytes: Set by a part that ships something else than the network's weights.
        preparation_s: See `Prepared`.
        notes: See `Prepared`.
    """

    network: nn.Module
    forward: Forward
    device: torch.device
    calibration: Callable[[], Tensor]
    stack: ExitStack
    size_bytes: int | None = None
    preparation_s: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def folder(self) -> Path:
        """Make a folder that ends with the variant."""
        return Path(self.stack.enter_context(tempfile.TemporaryDirectory()))

    def need_gpu(self) -> None:
        if self.device.type != "cuda":
            raise Unsupported("needs a GPU")


class Kind(IntEnum):
    """What a part is about, in the order in which parts work."""

    GRAPH = 0  # rewrites the network
    NUMBERS = 1  # decides what it computes with
    MEMORY = 2  # decides how tensors lie
    EXECUTION = 3  # decides what calls it


# --- Parts ----------------------------------------------------------------------------------


def _fused(build: _Build) -> None:
    """Fold each BatchNorm into the convolution before it."""
    images = torch.randn(8, *EXAMPLE_SHAPE[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = build.network(images)
        build.network = build.forward = fuse(build.network)
        build.notes["fusing_error"] = float((build.network(images) - before).abs().max())
    left = [m for m in build.network.modules() if isinstance(m, nn.BatchNorm2d)]
    if left:
        raise RuntimeError(f"{len(left)} BatchNorms are not behind a convolution")


def _fp32(build: _Build) -> None:
    """True fp32, which every variant but tf32 uses for what it does not cast."""


def _tf32(build: _Build) -> None:
    """Let the GPU round the factors of fp32 products to 10 bits of mantissa."""
    build.need_gpu()
    if torch.cuda.get_device_capability(build.device) < (8, 0):
        raise Unsupported("needs a GPU of the Ampere generation or later")
    build.stack.enter_context(_matmul_precision("tf32"))


def _cast(dtype: torch.dtype) -> Callable[[_Build], None]:
    """Make the part that casts the whole network."""

    def part(build: _Build) -> None:
        network = build.network.to(dtype)
        build.forward = lambda images: network(images.to(dtype)).float()
        _try(build)

    return part


def _autocast(dtype: torch.dtype) -> Callable[[_Build], None]:
    """Make the part that lets torch choose which operations run in the smaller type."""

    def part(build: _Build) -> None:
        network, kind = build.network, build.device.type

        def forward(images: Tensor) -> Tensor:
            with torch.autocast(kind, dtype):
                logits: Tensor = network(images)
            return logits.float()

        build.forward = forward
        _try(build)

    return part


def _channels_last(build: _Build) -> None:
    """Lay channels next to each other, as tensor cores and many CPU kernels like them."""
    build.network.to(memory_format=torch.channels_last)
    inner = build.forward
    build.forward = lambda images: inner(images.contiguous(memory_format=torch.channels_last))


def _compile(build: _Build) -> None:
    """Compile with torch.compile: CUDA graphs within on a GPU, plain kernels on a CPU."""
    torch.compiler.reset()  # what other networks compiled counts against a limit
    build.stack.callback(torch.compiler.reset)
    # Each time from scratch, or the second preparation would be told as a quick one.
    caches_off = torch.compiler.config.patch(force_disable_caches=True)  # type: ignore[attr-defined]
    build.stack.enter_context(caches_off)
    mode = "reduce-overhead" if build.device.type == "cuda" else "default"
    build.forward = torch.compile(build.forward, mode=mode, dynamic=False)
    try:
        _first_call(build)
    except Exception as error:
        for link in chain(error):
            if type(link).__name__ in _NO_COMPILER:
                raise Unsupported(f"needs a compiler: {first_line_of(link)}") from error
        raise


def _cuda_graph(build: _Build) -> None:
    """Capture the forward pass once for each shape of its input and replay it."""
    build.need_gpu()
    inner = build.forward
    captured: dict[torch.Size, Replay] = {}

    def forward(images: Tensor) -> Tensor:
        if images.shape not in captured:
            captured[images.shape] = capture(inner, images)
        return captured[images.shape](images)

    build.forward = forward
    build.stack.callback(captured.clear)
    _first_call(build)


def _onnx(build: _Build) -> None:
    """Export to ONNX and run with ONNX Runtime."""
    ort = _onnxruntime(build.device)
    start = time.perf_counter()
    path = build.folder() / "model.onnx"
    export_onnx(build.network, path)
    _run_onnx(build, ort, path, start)
    if build.notes["max_abs_difference"] > MAX_EXPORT_ERROR:
        raise RuntimeError(f"ONNX Runtime's logits differ by {build.notes['max_abs_difference']}")


def _int8(build: _Build) -> None:
    """Quantize weights and activations after training, for the CPU, with ONNX Runtime.

    Convolutions and linear layers are quantized, per channel, but for the first two convolutions:
    channels of what lies between them differ too much for one scale. What squeeze-excitation and
    hard-swish do between layers stays in fp32. Weights use 7 bits, so that sums of products fit on
    processors without VNNI. The reasons are in ``docs/decisions.md``.
    """
    if build.device.type != "cpu":
        raise Unsupported("is quantized for the CPU")
    ort = _onnxruntime(build.device)
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    start = time.perf_counter()
    folder = build.folder()
    network = build.network
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        network = fuse(network)
    export_onnx(network, folder / "fp32.onnx")
    batches = iter(build.calibration().split(64))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with _silence():
        quant_pre_process(folder / "fp32.onnx", folder / "ready.onnx", skip_symbolic_shape=True)
        nodes = onnx.load(folder / "ready.onnx").graph.node
        quantization.quantize_static(
            folder / "ready.onnx",
            folder / "int8.onnx",
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm"],
            nodes_to_exclude=[node.name for node in nodes if node.op_type == "Conv"][:2],
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    _run_onnx(build, ort, folder / "int8.onnx", start)


PARTS: dict[str, tuple[Kind, Callable[[_Build], None]]] = {
    "fused": (Kind.GRAPH, _fused),
    "fp32": (Kind.NUMBERS, _fp32),
    "tf32": (Kind.NUMBERS, _tf32),
    "fp16": (Kind.NUMBERS, _cast(torch.float16)),
    "bf16": (Kind.NUMBERS, _cast(torch.bfloat16)),
    "autocast_fp16": (Kind.NUMBERS, _autocast(torch.float16)),
    "autocast_bf16": (Kind.NUMBERS, _autocast(torch.bfloat16)),
    "channels_last": (Kind.MEMORY, _channels_last),
    "compile": (Kind.EXECUTION, _compile),
    "cuda_graph": (Kind.EXECUTION, _cuda_graph),
    "onnx": (Kind.EXECUTION, _onnx),
    "int8": (Kind.EXECUTION, _int8),
}
# What Inductor raises where it has nothing, or nothing complete, to compile with.
_NO_COMPILER = {"CppCompileError", "InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton"}
# ONNX Runtime lays out memory itself, and is given the network in fp32.
_ALONE = {"onnx", "int8"}


# --- Preparing ------------------------------------------------------------------------------


def check(name: str, key: str = "variants") -> str:
    """See that a variant exists and makes sense.

    Args:
        name: Parts joined by ``+``.
        key: Where the user wrote it.

    Returns:
        The name with its parts in their order, and without an ``fp32`` that says nothing.

    Raises:
        UserError: If a part does not exist or parts exclude each other.
    """
    parts = name.split("+")
    for part in parts:
        if part not in PARTS:
            raise unknown_name(f"{key}={name}", "variant", part, PARTS)
    parts.sort(key=lambda part: PARTS[part][0])
    kinds = [PARTS[part][0] for part in parts]
    for first, second, a, b in zip(parts, parts[1:], kinds, kinds[1:], strict=False):
        if a == b:
            raise bad_value(key, name, f"one of {first} and {second}")
    if alone := _ALONE.intersection(parts):
        allowed = {"fused", "fp32", *alone}
        for part in parts:
            if part not in allowed:
                raise bad_value(key, name, f"{alone.pop()} without {part}")
    return "+".join(part for part in parts if part != "fp32" or len(parts) == 1)


def engines(name: str) -> dict[str, str]:
    """Tell the versions of what executes a variant, as far as they are installed."""
    packages = ["torch"]
    if _ALONE.intersection(name.split("+")):
        packages += ["onnxruntime", "onnxruntime-gpu", "onnxscript"]
    found = {package: provenance.version(package) for package in packages}
    return {package: version for package, version in found.items() if version is not None}


@contextmanager
def prepare(
    name: str, backbone: nn.Module, device: torch.device, calibration: Callable[[], Tensor]
) -> Iterator[Prepared]:
    """Make a variant ready; when the context ends, every flag is as it was before.

    Args:
        name: As `check` accepts it.
        backbone: Fresh, in fp32 on the CPU; it may be changed.
        device: Where to run.
        calibration: Gives normalised training images (N, 3, 32, 32) on the CPU; called only by
            variants that need them.

    Raises:
        Unsupported: If this device or installation can't run it.
        UserError: If there is no such variant.
    """
    parts = check(name).split("+")
    with ExitStack() as stack:
        stack.enter_context(_matmul_precision("ieee"))
        stack.enter_context(_fastest_algorithms())
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        network = backbone.eval()
        build = _Build(network, network, device, calibration, stack)
        for kind in Kind:
            if kind == Kind.NUMBERS and not _ALONE.intersection(parts):
                build.network.to(device)
            for part in parts:
                if PARTS[part][0] == kind:
                    PARTS[part][1](build)
        if build.size_bytes is None:
            build.size_bytes = _weights_size(build.network, build.folder())
        eager = all(PARTS[part][0] != Kind.EXECUTION for part in parts)
        yield Prepared(build.forward, build.size_bytes, build.preparation_s, build.notes, eager)


def _example(build: _Build) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(EXAMPLE_SHAPE, generator=generator).to(build.device)


def _try(build: _Build) -> None:
    """Call the network once: whether a device computes in a type is best asked by doing it."""
    try:
        with torch.inference_mode():
            build.forward(_example(build))
    except RuntimeError as error:
        if "not implemented" in str(error) or "not supported" in str(error):
            raise Unsupported(str(error).splitlines()[0]) from error
        raise


def _first_call(build: _Build) -> None:
    """Make and time the call that compiles or captures, in the mode of all later ones."""
    images = _example(build)
    start = time.perf_counter()
    with torch.inference_mode():
        build.forward(images)
        if build.device.type == "cuda":
            torch.cuda.synchronize(build.device)
    build.preparation_s = time.perf_counter() - start


def _weights_size(network: nn.Module, folder: Path) -> int:
    weights = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    return (folder / "weights.safetensors").stat().st_size


# --- CUDA graphs ----------------------------------------------------------------------------


@dataclass
class Replay:
    """A captured forward pass. Calling it copies the images in and replays it.

    Attributes:
        graph: Replays on what lies in ``images``.
        images: Where the input has to lie.
        logits: Where the output lies after a replay.
    """

    graph: torch.cuda.CUDAGraph
    images: Tensor
    logits: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        self.images.copy_(images)
        self.graph.replay()
        return self.logits


def capture(forward: Forward, images: Tensor) -> Replay:
    """Capture a forward pass for one shape of input.

    Raises:
        RuntimeError: If it does what can't be captured, such as waiting for the device.
    """
    with torch.cuda.device(images.device):
        static = images.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up in the first calls
            for _ in range(3):
                forward(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = forward(static)
    return Replay(graph, static, logits)


# --- ONNX -----------------------------------------------------------------------------------


def _onnxruntime(device: torch.device) -> Any:
    """Import what export and execution need.

    Raises:
        Unsupported: If a package is missing, or its build for this device.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Unsupported(f"needs {error.name}: pip install 'cifar-lightning[onnx]'") from error
    if device.type not in ("cpu", "cuda"):
        raise Unsupported("needs a CPU or a CUDA GPU")
    if _provider(device) not in onnxruntime.get_available_providers():
        raise Unsupported("needs ONNX Runtime for GPUs: pip install onnxruntime-gpu")
    return onnxruntime


def _provider(device: torch.device) -> str:
    return "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"


def export_onnx(network: nn.Module, path: Path) -> None:
    """Write ONNX with the weights inside, a free batch size, ``images`` in and ``logits`` out.

    What the exporter says beside it, such as the files on this machine that it traced, is left out.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    images = torch.randn(2, *EXAMPLE_SHAPE[1:])
    # NOTE: torch.export reads the older `allow_tf32`, which raises while all switches are `ieee`.
    with _silence(), _matmul_precision("tf32"):
        program = torch.onnx.export(
            network.cpu(),
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None
        ClearMetadataAndDocStringPass()(program.model)
        program.save(path)


def _run_onnx(build: _Build, ort: Any, path: Path, start: float) -> None:
    """Let ONNX Runtime do the calls, with torch's number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    provider: Any = _provider(build.device)
    if build.device.type == "cuda":
        # One stream for both, so that input is ready and events around a call time the call. Not
        # torch's default one: its handle is 0, which ONNX Runtime reads as "none given".
        stream = torch.cuda.Stream(build.device)
        build.stack.enter_context(torch.cuda.stream(stream))
        settings = {
            "device_id": build.device.index or 0,
            "user_compute_stream": str(stream.cuda_stream),
            "use_tf32": "0",
        }
        provider = (provider, settings)
    session = ort.InferenceSession(path, options, providers=[provider])
    if _provider(build.device) not in session.get_providers():
        raise Unsupported(f"{_provider(build.device)} could not be started")
    reference = build.network.cpu()
    classes = reference(torch.zeros(EXAMPLE_SHAPE)).shape[1]

    def on_cpu(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    def on_gpu(images: Tensor) -> Tensor:
        images = images.contiguous()
        logits = torch.empty(len(images), classes, device=images.device)
        binding = session.io_binding()
        for bind, name, tensor in (
            (binding.bind_input, "images", images),
            (binding.bind_output, "logits", logits),
        ):
            bind(name, "cuda", images.device.index or 0, "float32", tensor.shape, tensor.data_ptr())
        session.run_with_iobinding(binding)
        return logits

    build.forward = on_gpu if build.device.type == "cuda" else on_cpu
    build.preparation_s = time.perf_counter() - start
    build.size_bytes = path.stat().st_size
    images = torch.randn(8, *EXAMPLE_SHAPE[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = build.forward(images.to(build.device)).cpu()
        difference = float((found - reference(images)).abs().max())
    build.notes |= {"onnxruntime": ort.__version__, "max_abs_difference": difference}


@contextmanager
def _silence() -> Iterator[None]:
    """Keep exporters' progress off the console; what they raise comes through."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(level)


# --- Flags ----------------------------------------------------------------------------------


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    """Set how products of fp32 numbers are computed on a GPU, and restore it."""
    before = [switch.fp32_precision for switch in _PRECISION_SWITCHES]
    try:
        for switch in _PRECISION_SWITCHES:
            switch.fp32_precision = precision
        yield
    finally:
        for switch, value in zip(_PRECISION_SWITCHES, before, strict=True):
            switch.fp32_precision = value


@contextmanager
def _fastest_algorithms() -> Iterator[None]:
    """Let cuDNN look for the fastest algorithm of each convolution; the warm-up pays for it.

    A training's determinism ends here: it would slow what is measured after it, and only there.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        cudnn.benchmark, cudnn.deterministic = True, False
        torch.use_deterministic_algorithms(False)
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)


def flags() -> dict[str, object]:
    """Tell every switch that decides how a network is computed, as it is now."""
    conv, rnn, matmul = _PRECISION_SWITCHES
    return {
        "cudnn.conv.fp32_precision": conv.fp32_precision,
        "cudnn.rnn.fp32_precision": rnn.fp32_precision,
        "cuda.matmul.fp32_precision": matmul.fp32_precision,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "inference_mode": torch.is_inference_mode_enabled(),
    }


def convolution_error(device: torch.device) -> float:
    """Compare one dense convolution with float64: about 1e-7 in fp32, 1e-4 and more in TF32.

    Returns:
        The largest absolute error over the largest absolute value, under the flags as they are.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 128, 16, 16, generator=generator)
    weights = torch.randn(128, 128, 3, 3, generator=generator)
    exact = nn.functional.conv2d(images.double(), weights.double(), padding=1)
    found = nn.functional.conv2d(images.to(device), weights.to(device), padding=1)
    return float((found.cpu().double() - exact).abs().max() / exact.abs().max())


def prove(name: str, error: float) -> None:
    """See that fp32 was fp32 and TF32 was TF32.

    Args:
        name: The variant that ran.
        error: What `convolution_error` found under it.

    Raises:
        RuntimeError: If they contradict each other.
    """
    found = "ieee" if error < IEEE_BELOW else "tf32"
    wanted = "tf32" if "tf32" in name.split("+") else "ieee"
    if found != wanted:
        raise RuntimeError(f"a convolution ran in {found}, not {wanted} (error {error:.1e})")
