"""What a processor is, by what Linux says of it."""

import subprocess

import pytest
from conftest import TINY

from cifar_lightning.data.digits import DigitsDataModule
from cifar_lightning.runs.run import Run
from cifar_lightning.system import environment, processor
from cifar_lightning.system.environment import Code
from cifar_lightning.system.processor import Processor, parse_processor

EPYC = """processor : 0
vendor_id : AuthenticAMD
cpu family : 25
model : {model}
model name : AMD EPYC
stepping : 1
flags : fpu sse4_2 avx avx2 {more}

processor : 1
vendor_id : AuthenticAMD
model name : AMD EPYC
"""
PI = """processor : 0
BogoMIPS : 108.00
Features : fp asimd evtstrm crc32 cpuid
CPU implementer : 0x41
CPU architecture: 8
CPU variant : 0x0
CPU part : {part}
CPU revision : 3

Revision : c03111
Serial : 100000000c0ffee0
Model : Raspberry Pi 4 Model B Rev 1.1
"""
BIG_LITTLE = "CPU part : 0xd05\nCPU part : 0xd05\nCPU part : 0xd0a\n"


def test_generations_of_one_name_are_told_apart():
    zen3 = parse_processor(EPYC.format(model=1, more=""))
    zen4 = parse_processor(EPYC.format(model=17, more="avx512f avx512bw"))
    assert zen3.slug == "amd-epyc-25-1-1-avx2"
    assert zen4.slug == "amd-epyc-25-17-1-avx512f"
    assert zen4.title == "AMD EPYC (family 25 model 17)"
    assert (zen3.vendor, zen3.family) == ("AuthenticAMD", "25")


def test_boards_are_told_by_their_model_and_cores():
    board = "Raspberry Pi 4 Model B Rev 1.1"
    four = parse_processor(PI.format(part="0xd08"), board)
    five = parse_processor(PI.format(part="0xd0b"), "Raspberry Pi 5 Model B Rev 1.0")
    assert four.slug == "raspberry-pi-4-model-b-rev-1-1-0xd08-3-asimd"
    assert four.title.startswith(board)
    assert five.slug != four.slug
    assert five.title != four.title
    assert parse_processor(BIG_LITTLE).model == "0xd05-0xd0a"
    assert "c0ffee" not in repr(four)


def test_only_cores_that_the_process_may_use_count():
    """On a chip with large and small ones, `taskset` decides what is measured."""
    little = "".join(f"processor : {n}\nCPU part : 0xd03\n\n" for n in (0, 1))
    text = f"{little}processor : 2\nCPU part : 0xd08\n\nModel : Odroid\n"
    assert parse_processor(text, usable={0, 1, 2}).model == "0xd03-0xd08"
    assert parse_processor(text, usable={0, 1}).model == "0xd03"
    large = parse_processor(text, usable={2})
    assert (large.model, large.name) == ("0xd08", "Odroid")


def test_only_one_of_intels_kinds_of_cores(tmp_path):
    hybrid = {"core": tmp_path / "core", "atom": tmp_path / "atom"}
    text = EPYC.format(model=151, more="")
    assert parse_processor(text, None, {0}, hybrid).cores is None  # all are alike
    hybrid["core"].write_text("0-3,6\n")
    hybrid["atom"].write_text("4-5\n")
    assert parse_processor(text, None, {0, 4}, hybrid) == parse_processor(text)
    assert parse_processor(text, None, {3, 6}, hybrid).cores == "core"
    small = parse_processor(text, None, {5}, hybrid)  # a core that is not listed
    assert small.title == "AMD EPYC (family 25 model 151 cores atom)"
    assert small.slug == "amd-epyc-25-151-1-avx2-atom"


def no_sysctl(*_, **__):
    raise FileNotFoundError


def test_what_the_system_does_not_tell_is_left_out(monkeypatch, tmp_path):
    nothing = parse_processor("")
    assert nothing.name
    assert nothing.slug
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "nowhere")
    monkeypatch.setattr(subprocess, "check_output", no_sysctl)
    processor.processor.cache_clear()
    assert processor.processor().name == nothing.name
    # macOS has no such file, and all of Apple's chips are `arm` by another way.
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: "Apple M3\n")
    processor.processor.cache_clear()
    assert processor.processor().slug == "apple-m3"
    processor.processor.cache_clear()


@pytest.mark.parametrize("name", ["", "///", "日本"])
def test_a_slug_is_never_empty(name):
    assert Processor(name).slug == "unknown"


def test_what_is_missing_is_named_by_what_can_be_installed(monkeypatch):
    """The project itself is on no index."""
    requires = ["torch>=2", 'onnx>=1.23; extra == "onnx"', 'optuna>=5; extra == "tune"']
    requires.append('onnxruntime>=1.32; extra == "onnx"')
    monkeypatch.setattr(environment.metadata, "requires", lambda name: requires)
    assert environment.installation("onnx") == "pip install 'onnx>=1.23' 'onnxruntime>=1.32'"

    def missing(name):
        raise environment.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.metadata, "requires", missing)
    assert environment.installation("tune") == "pip install '.[tune]' in the checkout"


def test_a_repository_around_an_installed_copy_is_not_its_code(tmp_path, monkeypatch):
    read = environment.code.__wrapped__
    assert read().commit
    monkeypatch.setattr(environment, "CHECKOUT", environment.CHECKOUT / "cifar_lightning")
    assert read() == Code()


def test_the_code_is_that_of_a_commands_beginning(command, outputs, monkeypatch):
    """What is measured after somebody has changed files was measured by what was loaded."""
    environment.code.cache_clear()
    commit, later = environment.code.__wrapped__(), Code("0" * 40, True)
    prepare_data = DigitsDataModule.prepare_data

    def changed(data):
        monkeypatch.setattr(environment.subprocess, "check_output", lambda *_, **__: later.commit)
        prepare_data(data)

    monkeypatch.setattr(DigitsDataModule, "prepare_data", changed)
    assert command(*TINY, "epochs=1", "benchmark.variants=[]").status == 0
    assert environment.code.__wrapped__() == later
    (folder,) = (outputs / "runs").iterdir()
    assert Run.load(folder).code == environment.code() == commit
