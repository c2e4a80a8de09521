"""Print docs/configuration.md from what ``conf/`` holds: `make docs`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
GROUPS = {
    "model": "The network.",
    "optim": "The optimizer. Weight decay is kept off BatchNorm and biases.",
    "scheduler": "The learning rate over the training, changed at every step.",
    "data": "The images.",
    "augment": "What is done to training images; options combine: `'augment=[crop,flip,cutout]'`.",
    "trainer": "Lightning's Trainer. Its other arguments work with a `+` in front, or are refused "
    "with the reason.",
    "callbacks": "Lightning's callbacks; none by default. Several work together: "
    "`'callbacks=[early_stopping,lr_monitor]'`. What ends a training run early ends it after a "
    "validation, and is remembered where the run is continued.",
    "logger": "Where metrics go. Several work together: `'logger=[tensorboard,csv]'`. Pictures and "
    "final figures go to TensorBoard alone.",
    "benchmark": "What is measured after the training run.",
    "distill": "Learning from a teacher; off by default.",
    "experiment": "Presets. Each file gives the reason for each of its values.",
    "hydra/launcher": "How a sweep's jobs are run.",
}
COMMANDS = {
    "measure": "python -m cifar_lightning.measure",
    "report": "python -m cifar_lightning.report",
    "predict": "python -m cifar_lightning.predict",
    "export": "python -m cifar_lightning.export",
    "tune": "python tune.py",
}
HEAD = """\
# Configuration

Every group and every key, made from `conf/` by `make docs`. On the command line a group is chosen
with `group=option` and a key is set with `key=value`; `python train.py --help` shows all of it, and
`python train.py --cfg job ...` what a command line would give. What a component's own class takes
beside these keys works with a `+` in front: `+optim.dampening=0.1`. A mistake is one line that
names the key, the value and what it must be.
"""


def described(path: Path) -> dict[str, str]:
    """Take each key's comment, at the end of its line, by the key alone."""
    lines = re.finditer(r"^ *(\w+):(?: .*?)? +# (.+)$", path.read_text(), re.M)
    return {line[1]: line[2] for line in lines}


def purpose(path: Path) -> str:
    """Take the comment that a file begins with, as one line."""
    lines: list[str] = []
    for line in path.read_text().splitlines():
        if not line.startswith("#") or line.startswith("# @package"):
            if lines:
                break
            continue
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def documented(target: str) -> dict[str, str]:
    """Take each argument's description out of a Google-style docstring, its bases' included."""
    found: dict[str, str] = {}
    thing = get_object(target)
    for level in thing.__mro__ if inspect.isclass(thing) else (thing,):
        text = inspect.getdoc(level) if level.__doc__ else None
        block = re.search(r"Args:\n(.*?)(?:\n\n|\Z)", text or "", re.DOTALL)
        for name, words in re.findall(
            r"^    (\w+)(?: \([^)]*\))?: (.*(?:\n {8}.*)*)", block[1] if block else "", re.M
        ):
            found.setdefault(name, " ".join(words.split()))
        if follow := re.search(r"arguments as for `(?:\w+\.)?(\w+)`", text or ""):
            # In the same file, or among what its room offers.
            for place in (level.__module__, level.__module__.rpartition(".")[0]):
                if hasattr(import_module(place), follow[1]):
                    found = documented(f"{place}.{follow[1]}") | found
                    break
    return found


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of a mapping and of those in it."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        elif key != "_partial_":
            yield f"{prefix}{key}", value


def table(path: Path, prefix: str, skip: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a table of a file's keys: the key, the value it has, what it means."""
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    comments = described(path)
    for name in node.get("defaults", []):
        if isinstance(name, str) and (path.parent / f"{name}.yaml").exists() and name != "train":
            base = path.parent / f"{name}.yaml"
            more = OmegaConf.to_container(OmegaConf.load(base))
            assert isinstance(more, dict)
            node, comments = more | node, described(base) | comments
    targets = [value for key, value in flat(node) if key.split(".")[-1] == "_target_"]
    known: dict[str, str] = {}
    for target in reversed(targets):
        if target.startswith(("cifar_lightning.", "hydra_plugins.")):
            known |= documented(target)
    rows = [
        (f"{prefix}{key}", value, comments.get(key.split(".")[-1]) or known.get(key.split(".")[-1]))
        for key, value in flat(node)
        if key.split(".")[0] not in ("defaults", "hydra", *skip) and not key.endswith("_target_")
    ]
    if not rows:
        return
    yield "| key | value | |"
    yield "| --- | --- | --- |"
    for key, value, words in rows:
        yield f"| `{key}` | `{_written(value)}` | {(words or '').replace('|', '/')} |"
    yield ""


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if len(text) < 60 else f"{text[:56]}..."


def page() -> str:
    """Make the whole page."""
    lines = [HEAD, "## Top level", "", *table(CONF / "train.yaml", "")]
    for group, words in GROUPS.items():
        lines += [f"## {group}", "", words, ""]
        for path in sorted((CONF / group).rglob("[!_]*.yaml")):
            about, option = purpose(path), path.relative_to(CONF / group).with_suffix("")
            lines += [f"### `{group}={option}`", "", *([about, ""] if about else [])]
            if group == "experiment":
                lines += ["```yaml", *_settings(path), "```", ""]
            else:
                prefix = {"augment": "augment.", "hydra/launcher": "hydra.launcher."}
                lines += table(path, prefix.get(group, f"{group}."))
    for name, start in COMMANDS.items():
        node = OmegaConf.load(CONF / f"{name}.yaml")
        about = OmegaConf.select(node, "hydra.help.header").partition(": python")[0]
        lines += [f"## `{start}`", "", f"{about.rstrip(':.')}.", ""]
        lines += table(CONF / f"{name}.yaml", "", skip=("space",))
        if name == "tune":
            lines += [
                "`space` holds the ranges that are searched: see `conf/space/`. What "
                "`search=front` adds is in `conf/search/front.yaml` and [search.md](search.md).",
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def _settings(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return lines[start:]


if __name__ == "__main__":
    print(page(), end="")
