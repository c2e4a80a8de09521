"""Mistakes of the user: one line, status 2, nothing left behind."""

import os
import re
import shutil
import subprocess
import sys
import time
from typing import get_args, get_type_hints

import pytest
from conftest import ROOT, TINY, TINY_MOBILENET
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf, ValidationError

from cifar_lightning.cli import report
from cifar_lightning.cli.arguments import as_typed, flags_apart, key_positional
from cifar_lightning.config.schema import SCHEMAS
from cifar_lightning.config.texts import Text, text_keys
from cifar_lightning.config.user_errors import to_user_error
from cifar_lightning.config.values import RULES
from cifar_lightning.data.digits import DigitsDataModule

BAD = {
    # What was typed: how the line begins, and what it offers.
    "epochs=ten": "epochs=ten: must be an integer",
    "epochs=0": "epochs=0: must be an integer of at least 1",
    "epochs=1.5": "epochs=1.5: must be an integer",
    "epochs=null": "epochs",
    "data.device=gpu": "data.device=gpu: must be cpu: the training has no GPU",
    "data.device=tpu": "data.device=tpu: must be cpu, gpu",
    "ema=1": "ema=1.0: must be null, or above 0 and below 1",
    "augment=[mixup,cutmix]": "augment=mixup,cutmix: must be one of them",
    "augment=[crop,flip,flip_alternating]": "augment=flip,flip_alternating: must be one of them",
    "data.val_fraction=1": "data.val_fraction=1: must be 0 or more, below 1",
    "batch_size=-1": "batch_size=-1: must be",
    "seed=-1": "seed=-1: must be",
    "rerun=maybe": "rerun=maybe: must be true or false",
    "label_smoothing=1.5": "label_smoothing=1.5: must be 0 or more, below 1",
    "precision=fp12": "precision=fp12: must be 32-true, bf16-mixed, 16-mixed",
    "precision=16-mixed": "precision=16-mixed: must be 32-true or bf16-mixed on a CPU",
    "id=../x": "id=../x: must be up to 64 letters",
    "id=a|b": "id=a|b: must be",
    "optim.lr=abc": "optim.lr=abc: must be a number above 0",
    "optim.lr=-1": "optim.lr=-1: must be",
    "optim.lr=nan": "optim.lr=nan: must be",
    "optim.lr=true": "optim.lr=True: must be",
    "optim.momentum=2": "optim.momentum=2: must be",
    "optim.nesterov=5": "optim.nesterov=5: must be bool",
    "optim.lrr=1": "optim.lrr: no such key; did you mean lr?",
    "+optim.lrr=1": "optim.lrr: no such key; did you mean lr?",
    "+optim.params=1": "optim.params: no such key",
    "scheduler.warmup=1": "scheduler.warmup=1: must be",
    "scheduler=[cosine,step]": "scheduler: needs exactly one option",
    "model=mobilnetv3": "model=mobilnetv3: no such option; did you mean mobilenetv3?",
    "model=": "model",
    "model=null": "model=null: must be cifarnet, cifarnet_85, cifarnet_93",
    "augment=null": "augment=null: must be autoaugment",
    "model=_x": "model=_x: no such option; allowed: cifarnet",
    "data=_batches": "data=_batches: no such option; allowed: cifar10",
    "data=[digits,cifar10]": "data: needs exactly one option",
    "benchmark=[quick,full]": "benchmark: needs exactly one option",
    "augment=[crop,cutuot]": "augment=cutuot: no such option; did you mean cutout?",
    "callbacks=[earlystopping]": "callbacks=earlystopping: no such option; did you mean early_",
    "experiment=study/plan16": "experiment=study/plan16: no such option; did you mean study/plain",
    "+epohcs=3": "epohcs: no such key; did you mean epochs?",
    "+mine.x=3": "mine: no such key",
    "seed=0,1": "seed=0,1: must be one value; a sweep needs -m, a list is 'seed=[0,1]'",
    "id=a,b": "id=a,b: must be up to 64 letters",
    "augment.flip.p=1": "augment.flip: no such key",
    "experimnt=quick": "experimnt: no such key; did you mean experiment?",
    "modle=resnet18": "modle: no such key; did you mean model?",
    "experiment=quik": "experiment=quik: no such option; did you mean quick?",
    "model.output_stride=12": "model.output_stride=12: must be 1, 2, 4, 8, 16, 32",
    "model.output_stride=64": "model.output_stride=64: must be 1, 2, 4, 8, 16, 32",
    "model.output_stride=a": "model.output_stride=a: must be int",
    "model.width=0": "model.width=0: must be above 0",
    "model.width=wide": "model.width=wide: must be float",
    "model._target_=os.nothing": "model._target_=os.nothing: must be",
    "augment.crop.padding=-3": "augment.crop.padding=-3: must be 0 or more",
    "augment.crop.mode=zeros": "augment.crop.mode=zeros: must be reflect, replicate or null",
    "augment.crop.pad=3": "augment.crop.pad: no such key; did you mean padding?",
    "benchmark.protocol=slow": "benchmark.protocol=slow: must be full, quick",
    "benchmark.variants=[fp23]": "benchmark.variants=fp23: no such variant; did you mean fp32?",
    "benchmark.threads=[0]": "benchmark.threads=[0]: must be",
    "trainer.devices=99": "trainer.devices=99: must be 1 to",
    "trainer.accelerator=abacus": "trainer",
    "trainer.max_epoch=3": "trainer.max_epoch: no such key; did you mean max_epochs?",
    "trainer.max_epochs=10": "trainer.max_epochs=10: must be 30, which follows from epochs; set",
    "trainer.max_epochs=null": "trainer.max_epochs=None: must be 30, which follows from epochs",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed: must be 32-true, which follows",
    "data.seed=1": "data.seed=1: must be 0, which follows from seed; set that",
    "model.num_classes=7": "model.num_classes=7: must be 10, which follows from data",
    "data.mean=[1,2]": "data.mean=[1, 2]",
    "data.num_classes=9": "data.num_classes=9: must be 10",
    "batch_size=100000": "batch_size=100000: must be 2 to 1295 (the training split has",
    "seed=a=b": "seed=a=b: can't be read",
    "model.width=[1": "model.width=[1: can't be read",
    "data=imagefolder": "data.name: needs a value, say data.name=...",
    "hydra.run.dir=elsewhere": "hydra.run.dir=elsewhere: can't be changed; outputs=... says",
    "hydra.run.dir=.": "hydra.run.dir=.: can't be changed; outputs=... says where files go",
    "hydra.output_subdir=../x": "hydra.output_subdir=../x: can't be changed; outputs=...",
    "hydra.sweep.dir=elsewhere": "hydra.sweep.dir=elsewhere: can't be changed; outputs=...",
    "hydra.job.chdir=true": "hydra.job.chdir=True: can't be changed; outputs=...",
    "hydra/launcher=joblib": "hydra/launcher=joblib: no such option",
}


def assert_refused(ended, outputs, begins):
    assert ended.status == 2, ended
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith(f"error: {begins}"), lines[0]
    assert not outputs.exists()


@pytest.mark.parametrize("override", BAD)
def test_bad_overrides(override, command, outputs):
    tiny = TINY_MOBILENET if override.startswith("model") else TINY
    assert_refused(command(*tiny, override), outputs, BAD[override])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ("augment=cutout", "augment.cutout.size=33"),
            "augment.cutout.size=33: must be 1 to 32, the image's size",
        ),
        (
            ("augment=progressive", "augment.progressive.start=4"),
            "augment.progressive.start=4: must be 8 to 32, the image's size",
        ),
        (
            ("trainer.deterministic=true", "trainer.benchmark=true"),
            "trainer.benchmark=true: must be false or null where trainer.deterministic",
        ),
        (
            ("data.device=gpu", "data.num_workers=2"),
            "data.num_workers=2: must be 0 where data.device=gpu",
        ),
        (
            ("trainer.devices=2", "trainer.strategy=ddp", "batch_size=648"),
            "batch_size=648: must be 2 to 647 for 2 processes (the training split has 1295",
        ),
        (("test=false",), "test=false: must be true, or benchmark.variants=[]"),
        (("augment=mixup", "augment.mixup.alpha=0"), "augment.mixup.alpha=0: must be a number"),
        (
            ("augment=cutmix", "augment.cutmix.alpha=0.001"),
            "augment.cutmix.alpha=0.001: must be a number of at least 0.01",
        ),
    ],
)
def test_what_excludes_itself(overrides, line, command, outputs):
    assert_refused(command(*TINY, *overrides), outputs, line)


# Of 8x8 pixels the default stem and three max-pools leave none.
SMALLEST = ("data=digits", "model=cifarnet", "augment=[crop,progressive]")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("augment.progressive.start=8",), "start=8: must be 9 or more: model can't take 8x8"),
        # Of 16, too, which is the default.
        (
            ("model.channels=[8,8,8,8]", "augment.progressive.start=8"),
            "start=8: must be 17 or more: model can't take 16x16 pixels",
        ),
        (("-m", "model.channels=[8,8,8],[8,8,8,8]"), "start=16: must be 17 or more: model can't"),
    ],
)
def test_images_begin_no_smaller_than_a_network_can_take(
    overrides, line, command, outputs, monkeypatch
):
    monkeypatch.setattr(DigitsDataModule, "read", None)
    assert_refused(command(*SMALLEST, *overrides), outputs, f"augment.progressive.{line}")


def test_a_bad_multirun_leaves_nothing(command, outputs):
    assert_refused(command("-m", *TINY, "seed=0,1", "optim.lr=-1"), outputs, "optim.lr=-1")
    ended = command("-m", *TINY, "model.depth=0,-1")
    assert ended.status == 2
    first, second = ended.err.splitlines()
    assert first.startswith("error: model.depth=0: must be")
    assert second.startswith("error: model.depth=-1: must be")
    assert not outputs.exists()


def test_bad_width_of_shufflenet(command, outputs):
    ended = command("data=digits", "model=shufflenetv2", "model.width=0.7")
    assert_refused(ended, outputs, "model.width=0.7: must be 0.5, 1.0, 1.5, 2.0")


@pytest.mark.parametrize(
    ("overrides", "begins"),
    [
        (("model=resnet8", "model.width=1e308"), "model.width=1e+308: must leave at least one"),
        (("model=cifarnet", "model.channels=[4096,4096,4096]", "model.depth=64"),
         "model: its network has 2.9e+10 parameters, 5e+08 are the most"),
    ],
)  # fmt: skip
def test_networks_beyond_any_memory(overrides, begins, command, outputs):
    assert_refused(command("data=digits", *overrides), outputs, begins)


def test_a_folder_that_is_none(command, outputs, tmp_path):
    ended = command("data=imagefolder", "data.name=x", f"data.root={tmp_path}/no")
    assert_refused(ended, outputs, f"data.root={tmp_path}/no: there is no folder")


def test_a_truncated_image(command, outputs, image_folder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    victim = sorted((images / "train").glob("*/*"))[7]
    victim.write_bytes(victim.read_bytes()[:-300])
    ended = command("data=imagefolder", "data.name=x", f"data.root={images}")
    assert ended.status == 2
    assert f"error: {victim}: this image can't be read" in ended.err
    assert not outputs.exists()


@pytest.mark.parametrize(
    "override",
    [
        "hydra.run.dir=elsewhere", "hydra.mode=MULTIRUN", "hydra.job.chdir=true",
        "hydra.output_subdir=x", "hydra.sweep.dir=x", "-m",
    ],
)  # fmt: skip
def test_no_command_takes_other_folders(override, call, tmp_path, monkeypatch):
    monkeypatch.undo()  # of what says that no command is a multirun
    monkeypatch.chdir(tmp_path)
    ended = call(report.main, override)
    key = override.partition("=")[0].replace("hydra.mode", "-m")
    assert (ended.status, ended.err.startswith(f"error: {key}")) == (2, True), ended.err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("none", ["logger=null", "logger=[]", "~logger"])
def test_a_group_may_be_left_out(none, command, outputs):
    ended = command(*TINY, none, "callbacks=null", "epochs=0")
    assert_refused(ended, outputs, "epochs=0")
    ended = command(*TINY, none, "callbacks=lr_monitor")
    assert_refused(ended, outputs, "callbacks=lr_monitor: needs a logger, say logger=csv")


@pytest.mark.parametrize(
    "sweep",
    ["logger=null,csv", "logger=csv, null", "logger=choice(csv,null)", "callbacks=null,lr_monitor",
     "distill=null", "experiment=null,demo"],
)  # fmt: skip
def test_a_sweep_may_leave_a_group_out(sweep, command, outputs):
    ended = command("-m", *TINY, "epochs=0", sweep)
    assert_refused(ended, outputs, "epochs=0: must be")


@pytest.mark.parametrize("sweep", ["model=null,resnet8", "augment=null,crop", "scheduler=null"])
def test_a_group_that_is_needed_is_in_every_job(sweep, command, outputs):
    ended = command("-m", *TINY, sweep)
    assert_refused(ended, outputs, f"{sweep}: must be ")


def number_keys():
    for name, kind in SCHEMAS.items():
        for key, hint in get_type_hints(kind).items():
            if {int, float} & {hint, *get_args(hint)}:
                yield name, key


@pytest.mark.parametrize(("name", "key"), number_keys())
def test_what_is_no_number_is_told_what_it_must_be(name, key):
    """In every command, with the range where there is one."""
    for value in ("x", [17, "x"]):
        with pytest.raises(ValidationError) as refused:
            OmegaConf.merge(OmegaConf.structured(SCHEMAS[name]), {key: value})
        told = to_user_error(refused.value)
        assert told is not None
        line = str(told)
        assert line.startswith((f"{key}={value}: must be ", f"{key}=x: must be ")), line
        if key in RULES:
            assert line.endswith(RULES[key][1])


def test_a_presets_settings_of_what_is_not_chosen(resolved, command, outputs):
    settings, _ = resolved("experiment=demo", "augment=flip")
    assert [*settings["augment"]] == ["flip"]
    ended = command("experiment=demo", "augment=flip", "augment.crop.padding=3")
    assert_refused(ended, outputs, "augment.crop: no such key; allowed: flip")
    ended = command("experiment=demo", "model=cifarnet")
    assert_refused(ended, outputs, "model.output_stride: no such key; did you mean stem_stride?")
    assert ended.err.strip().endswith("a preset sets it: ~model.output_stride leaves it out")


def test_no_network(command, outputs, tmp_path):
    # Port 9 of this machine: nobody listens there.
    ended = command(f"data.root={tmp_path / 'data'}", "data.mirrors=[http://127.0.0.1:9/x]")
    assert_refused(
        ended, outputs, f"data.root={tmp_path / 'data'}: no cifar-10-python.tar.gz there"
    )
    assert "http://127.0.0.1:9/x" in ended.err
    assert "data=digits" in ended.err


def test_an_archive_with_a_wrong_checksum(command, outputs, tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"no archive")
    assert_refused(command(f"data.root={tmp_path}"), outputs, f"{archive}: md5 is")


@pytest.mark.parametrize("moment", ["before the task", "in the task"])
def test_a_fault_of_ours_is_none_of_the_user(moment, command, outputs, tmp_path, monkeypatch):
    """Hydra wraps what its resolvers raise, so that a fault looks like a mistake."""
    name = {
        "before the task": "cifar_lightning.runs.resolve.check",
        "in the task": "cifar_lightning.cli.train.publish_finished",
    }

    def faulty(*arguments):
        raise KeyError("never heard of")

    monkeypatch.setattr(name[moment], faulty)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = command(*TINY)
    assert ended.status == 1
    (line,) = ended.err.splitlines()
    assert "'never heard of'" in line
    assert "this is a fault of cifar-lightning" in line
    (path,) = tmp_path.glob("cifar-lightning-error-*.log")
    assert line.endswith(str(path))
    text = path.read_text()
    assert "data=digits" in text
    assert "Traceback" in text
    assert "in faulty" in text
    assert not any(outputs.glob("runs/*/run.json"))


def test_a_job_of_slurm_that_lightning_can_not_use(command, outputs, monkeypatch):
    """Each would wait for processes that nobody starts."""
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    for name, value, line in (
        (None, None, "SLURM_NTASKS=2: must be 1 without srun; or begin with it: srun python ...\n"),
        ("SLURM_STEP_ID", "0", "SLURM_NTASKS=2: You set `--ntasks=2`"),
        ("SLURM_NTASKS_PER_NODE", "2", "trainer.devices=1: must be 2, the tasks on a node that"),
    ):
        if name:
            monkeypatch.setenv(name, value)
        ended = command(*TINY)
        assert ended.status == 2
        assert ended.err.startswith(f"error: {line}")
        assert not outputs.exists()


@pytest.mark.parametrize("said", [
    "[Errno 2] No usable temporary directory found in ['/tmp', '/']",  # Python's, matplotlib's
    "the default path isn't writable and a temporary directory could not be created",
])  # fmt: skip
def test_a_library_without_a_temporary_folder(said, command, monkeypatch):
    def refuse(*_):
        raise OSError(said)

    monkeypatch.setattr("cifar_lightning.cli.train.publish_finished", refuse)
    ended = command(*TINY)
    assert ended.status == 2
    assert ended.err.startswith("error: TMPDIR: must be a folder that can be written to; /tmp")


def test_what_hydra_does_not_wrap_is_the_users(command, outputs, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("a: [1\n")
    ended = command("--config-dir", str(tmp_path), *TINY, "experiment=mine")
    assert_refused(ended, outputs, "")


def start(*arguments):
    return subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_a_real_mistake_is_answered_at_once(outputs):
    begin = time.perf_counter()
    done = start(f"outputs={outputs}", "epohcs=3")
    seconds = time.perf_counter() - begin
    assert done.returncode == 2
    assert done.stderr.startswith("error: epohcs: no such key; did you mean epochs?")
    assert not outputs.exists()
    assert seconds < 5  # it is about 1 s on an idle machine; importing torch alone takes longer


DISTURBED = """
import os, signal, sys
from cifar_lightning.system import signals

def disturbed(name):
    os.kill(os.getpid(), getattr(signal, name))

{where}
from cifar_lightning.cli import start
start.{command}()
"""
# Where a signal strikes: in an import, and in what Hydra calls; what it surfaces as.
MOMENTS = {
    "importing": """
import builtins
real = builtins.__import__
def importing(name, *arguments, **settings):
    if name == "hydra":
        builtins.__import__ = real
        disturbed("{signal}")
    return real(name, *arguments, **settings)
builtins.__import__ = importing""",
    "importing, as another error": """
import builtins
real = builtins.__import__
def importing(name, *arguments, **settings):
    if name == "hydra":
        builtins.__import__ = real
        try:
            disturbed("{signal}")
        except KeyboardInterrupt:
            raise ImportError("numpy failed to import") from None
    return real(name, *arguments, **settings)
builtins.__import__ = importing""",
    "composing, as another error": """
from omegaconf import DictConfig
from omegaconf.errors import ConfigKeyError
real = DictConfig.merge_with
def merge_with(self, *others):
    DictConfig.merge_with = real  # twice would be a second Ctrl-C
    try:
        disturbed("{signal}")
    except KeyboardInterrupt:
        raise ConfigKeyError("_invalidate_flags_cache") from None
DictConfig.merge_with = merge_with""",
    "composing, swallowed": """
from omegaconf import DictConfig
real = DictConfig.merge_with
def merge_with(self, *others):
    DictConfig.merge_with = real
    try:
        disturbed("{signal}")
    except KeyboardInterrupt:
        pass
    return real(self, *others)
DictConfig.merge_with = merge_with""",
}


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_as_a_signal_whatever_it_surfaces_as(moment, name, status, outputs):
    command = {"SIGINT": "train", "SIGTERM": "report", "SIGHUP": "train"}[name]
    code = DISTURBED.format(where=MOMENTS[moment].format(signal=name), command=command)
    arguments = [] if command == "report" else TINY
    done = subprocess.run(
        [sys.executable, "-c", code, f"outputs={outputs}", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (status, "error: interrupted\n")
    assert not outputs.exists()


def test_processes_of_a_command_take_the_same_copy(tmp_path):
    """In a checkout that was not installed, and from another folder, too."""
    child = "import cifar_lightning as found; print(found.__file__)"
    code = (
        "import subprocess, sys; from types import SimpleNamespace as Module\n"
        f"sys.path[0] = {str(ROOT)!r}\n"
        "from cifar_lightning.cli import start\n"
        f"ask = lambda: subprocess.run([sys.executable, '-c', {child!r}])\n"
        "start.import_module = lambda name: Module(main=ask)\n"
        "start.report()"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert done.stdout.strip() == str(ROOT / "cifar_lightning" / "__init__.py")


def test_help_lists_the_groups(forked):
    done = start("--help")
    assert done.returncode == 0
    for word in (
        "model: cifarnet, cifarnet_85, cifarnet_93, mobilenetv2",
        "optim: adamw, muon, sgd",
        "label_smoothing",
        "output_stride",
    ):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("id=1e5", "id='1e5'"),
        ("++id=1e5", "++id='1e5'"),
        ("id=1e5,1_0", "id='1e5','1_0'"),
        ("id='a',b", "id='a','b'"),
        ("id='a,b',c", "id='a,b','c'"),
        ("id=choice(a,b)", "id=choice(a,b)"),
        ("id=null", "id=null"),
        ("run=1e5,B1", "run=['1e5','B1']"),
        ("run='1e5'", "run=['1e5']"),
        ("run=['1e5',B1]", "run=['1e5','B1']"),
        ("run=[]", "run=[]"),
        ("seed=1,2", "seed=1,2"),
        ("-m", "-m"),
    ],
)
def test_names_that_look_like_numbers_are_names(typed, read):
    keys = {"id": Text(nullable=True), "run": Text(several=True)}
    assert as_typed(typed, keys, sweeping=True) == read


def arrived(name, argument, sweeping=False):
    """Give what Hydra and OmegaConf make of an argument."""
    (override,) = PARSER.parse_overrides([as_typed(argument, text_keys(SCHEMAS[name]), sweeping)])
    return OmegaConf.to_container(OmegaConf.create({"value": override.value()}), resolve=True)[
        "value"
    ]


PARSER = OverridesParser.create()
KEYS = [(name, key, text) for name in SCHEMAS for key, text in text_keys(SCHEMAS[name]).items()]
ODD = (
    "a=b", "a,b", "#a", "a(1)", "it's", "100%", "a|b", " a ", "ü", "猫", "007", "2024_01_15", "1e3",
    "true", "${", "a$b", "\\", "\\'", "'a", '"', "{a: 1}", "a:b", "", "~", "-x", "a\nb", "?", "nan",
)  # fmt: skip


@given(st.sampled_from(KEYS), st.text(min_size=1) | st.text("',\\\"${}()[]=#~ :a1", min_size=1))
def test_texts_arrive_as_they_were_typed(key, typed):
    name, key, text = key
    assume("," not in typed or not text.several)
    as_hydra_has_it = re.match(r"['\"\[]|\?\?\?$|null$", typed) or "${" in typed
    assume(not as_hydra_has_it)
    assert arrived(name, f"{key}={typed}") == ([typed] if text.several else typed)


@pytest.mark.parametrize("typed", ODD)
def test_odd_names_are_names(typed, tmp_path):
    for key in ("data.root", "outputs", "data.name", "id", "data.cache_dir"):
        assert arrived("schema", f"{key}={typed}") == typed
    assert arrived("report_schema", f"to={typed}") == typed
    if "," not in typed:
        assert arrived("report_schema", f"outputs={typed}") == [typed]
        assert arrived("measure_schema", f"run={typed},B1") == [typed, "B1"]


def test_null_is_none_only_where_there_may_be_none():
    assert arrived("schema", "id=null") is None
    assert arrived("schema", "id='null'") == "null"
    assert arrived("schema", "outputs=null") == "null"


def test_an_interpolation_stays_one(monkeypatch):
    monkeypatch.setenv("DATA", "/there")
    assert arrived("schema", "data.root=${oc.env:DATA}/x") == "/there/x"
    assert arrived("report_schema", "outputs=${oc.env:NO,a},b") == ["a", "b"]


def test_what_exists_as_typed_is_taken_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a,b", "[c]", "${oc.env:HOME}", "'e'"):
        assert arrived("report_schema", f"outputs={name}") != [name]
        (tmp_path / name).mkdir()
        assert arrived("report_schema", f"outputs={name}") == [name]
        assert arrived("schema", f"outputs={name}", sweeping=True) == name
    assert arrived("measure_schema", "run=a,b,c") == ["a", "b", "c"]
    assert arrived("measure_schema", "run=~/a,b") == ["~/a,b"]  # expanded with the configuration


def test_a_home_folder_is_expanded(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ended = command("data=imagefolder", "data.name=x", "data.root=~/nothing")
    assert f"data.root={tmp_path}/nothing: there is no folder" in ended.err
    ended = command(*TINY, "outputs=~/out", "+trainer.fast_dev_run=true")
    assert ended.status == 0, ended.err
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("typed", "flags", "others"),
    [
        ("run=B1 --cfg job a.png", "--cfg job", "run=B1 a.png"),
        ("a.png -c job --package hydra", "-c job --package hydra", "a.png"),
        ("--config-dir x -cn y -m a=b", "--config-dir x -cn y -m", "a=b"),
        ("a=b -m c=d", "-m", "a=b c=d"),
        ("--info all a.png", "--info all", "a.png"),
        ("--info a.png", "--info", "a.png"),
        ("--cfg=job a.png", "--cfg=job", "a.png"),
        ("--resolve job", "--resolve", "job"),
        ("a.png --cfg", "--cfg", "a.png"),
        ("", "", ""),
    ],
)
def test_values_of_hydras_flags_are_no_images(typed, flags, others):
    assert flags_apart(typed.split()) == (flags.split(), others.split())


def test_what_has_no_key_is_an_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b=1.png").touch()
    assert key_positional(["run=B1", "a.png", "b=1.png", "it's"], "images") == [
        "run=B1",
        r"images=['a.png','b=1.png','it\'s']",
    ]
