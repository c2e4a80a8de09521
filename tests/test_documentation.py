"""What README and docs say is so: commands, examples, keys, links."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from test_architecture import ROOMS

from cifar_lightning.cli.arguments import as_typed, rename
from cifar_lightning.config import rules, schema
from cifar_lightning.config.texts import text_keys
from cifar_lightning.runs import resolve

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = re.compile(r"^(?:    )?((?:python|make|torchrun|pip|tensorboard|srun|sudo) .+)$", re.M)
# Made small: digits, one epoch, hardly any measuring.
SMALLEST = "data=digits benchmark=quick trainer.accelerator=cpu"
SMALL = f"{SMALLEST} epochs=1"
SMALLER = " model.output_stride=32"  # where the network has one
SMALL_SEARCH = (
    "base=[] augment=crop rungs=[1] targets=[1] final_minutes=0.1 final_seeds=[0] "
    "model=cifarnet model.whiten=false space.model.channels.first.low=8 "
    "space.model.channels.first.high=8"
)
# What can't be run here, and why.
NOT_RUN = {
    "sudo": "needs an administrator",
    "srun": "needs a cluster",
    "hydra/launcher=slurm": "needs a cluster",
    "--nnodes": "needs several machines",
    "SLURM_ARRAY_TASK_ID": "needs a cluster",
    "storage=postgresql": "needs a database",
    "experiment=b2": "needs a GPU",
    "experiment=best": "needs a GPU",
    "data.device=gpu": "needs a GPU",
    "path/to/images": "stands for a folder of the reader's",
    "outputs/rank": "needs the study's runs",
    "other/outputs": "stands for another machine's results",
    "run=A,B": "stands for two runs",
    "bench.py": "in an export's folder; tests/test_bench.py",
    "...": "stands for more",
    "perf.": "make perf, on a quiet machine",
    "-m venv": "installs packages; tests/test_installed.py does",
}
# What names a command, without what it needs.
NAMED = "python -m", "python -m cifar_lightning.measure"


def documented_commands():
    """Every command line of the pages, without comments, each once."""
    found = {}
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        text = re.sub(r"^#+ .*", "", text, flags=re.M)  # headings name commands
        for match in COMMANDS.finditer(text):
            command = " ".join(re.split(r"\s#\s|\s{2,}#", match[1])[0].split())
            found.setdefault(command, page.name)
        for quoted in re.findall(r"`((?:python|make) [^`]+)`", text):
            if (command := " ".join(quoted.split())) not in NAMED:
                found.setdefault(command, page.name)
    return found


RUN = [command for command in documented_commands() if not any(word in command for word in NOT_RUN)]
ADDED = (
    "plainnet",
    "invert",
    "jitter",
    "jit",
    "batch_size",
)  # by docs/extending.md, which has a test of its own
HYDRA = [
    command
    for command in documented_commands()
    if re.match(r"python (train|tune|-m cifar_lightning)", command)
    and not any(word in command for word in (*ADDED, "SLURM_ARRAY_TASK_ID"))
]


SCHEMAS = {name.partition("_")[0]: found for name, found in schema.SCHEMAS.items()}
SCHEMAS["train"] = schema.TrainConfig


def config_name(words):
    return words[2].rpartition(".")[2] if words[1] == "-m" else words[1].removesuffix(".py")


@pytest.mark.parametrize("command", HYDRA)
def test_every_command_has_keys_that_exist(command):
    words = shlex.split(command)
    name = config_name(words)
    texts = text_keys(SCHEMAS[name])
    renamed = schema.renamed_arguments(SCHEMAS[name])
    arguments = words[3:] if words[1] == "-m" else words[2:]
    kept = []
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            continue
        quoted = as_typed(rename(argument, renamed), texts, "-m" in words[2:])
        (override,) = OverridesParser.create().parse_overrides([quoted])
        if override.is_sweep_override():
            quoted = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        kept.append(quoted)
    resolve.register()
    with initialize_config_dir(str(schema.CONF_DIR), version_base="1.3"):
        composed = compose(name, kept, return_hydra_config=True)
    if name in ("train", "tune"):
        rules.check(schema.plain(composed))


def test_every_page_has_commands_that_were_found():
    pages = set(documented_commands().values())
    assert {"README.md", "latency.md", "reliability.md", "extending.md"} <= pages


def test_make_targets_and_extras_exist():
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for command in documented_commands():
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, re.M), command
            dry = subprocess.run(
                ["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True
            )
            assert dry.returncode == 0, command
        for names in re.findall(r"pip install .*\[([\w,]+)\]", command):
            assert set(names.split(",")) <= set(extras), command


def test_nothing_is_left_to_be_filled_in():
    for page in PAGES:
        assert not re.findall(r"@[A-Z]+@|TODO|TBD", page.read_text()), page.name


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


def test_links_lead_somewhere():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)", page.read_text()):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(path), f"{page.name}: {target}#{anchor}"
        for name in re.findall(
            r"`((?:tests|conf|cifar_lightning|perf|docs)/[\w/.]+)`", page.read_text()
        ):
            if Path(name).stem not in ADDED:
                assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_rooms_are_listed_as_they_are():
    listed = re.findall(r"^- `(\w+)/`: (.+)$", (ROOT / "README.md").read_text(), re.M)
    assert tuple(name for name, _ in listed) == ROOMS
    for name, words in listed:
        text = (ROOT / "cifar_lightning" / name / "__init__.py").read_text()
        assert text.startswith(f'"""{words}"""\n'), name


def test_arguments_with_brackets_are_quoted():
    """zsh, the shell of macOS, refuses them bare."""
    for page in PAGES:
        for command in re.findall(
            r"^    ((?:python|make) .*)$|`([^`\n]+)`", page.read_text(), re.M
        ):
            unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", " ".join(command))
            assert not re.search(r"\w=[\[{]", unquoted), f"{page.name}: {command}"


@pytest.mark.parametrize("command", documented_commands())
def test_every_command_is_one_for_zsh(command):
    """Unlike bash, it refuses a pattern without a match, and expands ``=name`` and ``~name``."""
    shown = re.sub(r"\$\{[^}]*\}|\$\(\([^)]*\)\)", "", command)  # a script's own expansions
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", shown).split()
    expanded = [word for word in bare if re.search(r"[][*?(){}!^#]|^[=~]", word)]
    assert not [word for word in expanded if word != "wheels/*.whl"]


# --- Configuration --------------------------------------------------------------------------


def test_the_configuration_page_is_what_conf_says(forked):
    made = subprocess.run(
        [sys.executable, "docs/configuration.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert (ROOT / "docs" / "configuration.md").read_text() == made, "run `make docs`"
    assert "|  |" not in made, "a key without a word about it"


# --- README as a library --------------------------------------------------------------------


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_readmes_lines_for_python(finished_run, tmp_path, monkeypatch, capsys):
    (lines,) = blocks(ROOT / "README.md", "python")
    assert lines.count("\n") <= 12
    (tmp_path / "outputs").symlink_to(finished_run)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), "red").save("cat.png")
    names = {}
    exec(lines.replace('load("quick")', 'load("tiny")'), names)  # the README's first run
    assert capsys.readouterr().out.strip() in names["classifier"].classes
    torch.testing.assert_close(names["logits"].softmax(1), names["probabilities"])


# --- Extending ------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "extending.md"


def extended(tmp_path):
    """Copy the project and add everything that the page shows, where it says."""
    for name in ("train.py", "conf", "cifar_lightning", "hydra_plugins"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    places = re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, text in places:
        path = tmp_path / name
        path.write_text(f"{path.read_text()}\n\n{text}" if path.exists() else text)
    return {name for name, _ in places}


def test_extending_as_the_page_says(tmp_path, forked):
    assert extended(tmp_path) == {
        "cifar_lightning/models/plainnet.py", "conf/model/plainnet.yaml",
        "conf/augment/jitter.yaml", "cifar_lightning/data/augmentation.py",
        "conf/augment/invert.yaml", "cifar_lightning/variants/jit.py",
        "cifar_lightning/variants/registry.py", "cifar_lightning/comparison/columns.py",
    }  # fmt: skip

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    done = run(
        "train.py", "model=plainnet", "model.width=8", "augment=[crop,invert,jitter]", "id=mine",
        "data=digits", "epochs=1", "benchmark=quick", "benchmark.variants=[fp32,jit,fused+jit]",
        "trainer.accelerator=cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for variant in ("fp32", "jit", "fused+jit"):
        (line,) = re.findall(rf"\| mine \|.*\| {re.escape(variant)}\s.*", done.stdout)
        assert "failed" not in line
    done = run("-m", "cifar_lightning.report", "sort=-batch_size")
    assert done.returncode == 0, done.stderr
    header = (tmp_path / "outputs" / "report" / "table.csv").read_text().splitlines()[0]
    assert "batch_size" in header.split(",")
    mistake = run("train.py", "model=plainnet", "model.width=8", "model.output_stride=3")
    assert mistake.returncode == 2
    assert "model.output_stride=3: must be 1, 2, 4, 8" in mistake.stderr


# --- Everything, for real -------------------------------------------------------------------


@pytest.mark.slow
def test_every_command_runs(tmp_path):
    """Run all that can be run, in one folder, in an order in which each finds what it needs."""
    for name in ("train.py", "tune.py", "conf", "cifar_lightning", "hydra_plugins"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    python = str(Path(sys.executable).parent)

    def run(command):
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=900,
            env={"PATH": f"{python}:/usr/bin:/bin", "HOME": str(tmp_path)},
        )  # fmt: skip
        return done.returncode, done.stderr[-2000:]

    for label, seed in (("B1", 90), ("B2", 91)):
        status, error = run(f"python train.py {SMALL}{SMALLER} id={label} seed={seed}")
        assert status == 0, error
    image = tmp_path / "image.png"
    Image.new("RGB", (50, 40), "red").save(image)
    (tmp_path / "photos").mkdir()
    shutil.copy(image, tmp_path / "photos" / "cat.png")
    shutil.copy(image, tmp_path / "cat.png")
    failed = []
    for command in RUN:
        words = shlex.split(command)
        if any(word in command for word in ADDED):
            continue
        if words[0] in ("make", "pip", "tensorboard"):
            continue  # made of what is run here; test_make_targets_and_extras_exist
        if words[1] == "tune.py":
            front = "search=front" in words  # says itself for how many epochs
            command += f" {SMALLEST} {SMALL_SEARCH}" if front else f" {SMALL}{SMALLER}"
            command += " n_trials=1"
        elif words[1] == "train.py" or words[0] == "torchrun":
            command += f" {SMALL}{SMALLER}"
        elif "measure" in command:
            command += " protocol=quick device=cpu"
        # Networks of one epoch reach no such accuracy.
        command = command.replace("test_acc>=80", "test_acc>=0")
        status, error = run(command)
        if "model.output_stride: no such key" in error:
            status, error = run(command.replace(SMALLER, ""))
        if status:
            failed.append(f"{command}: {status}: {error}")
    assert not failed, "\n".join(failed)
