"""The model card of an export: what it is, how to load it, how good it is, how it was made."""

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from omegaconf import OmegaConf

from cifar_lightning.runs import identity
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.layout import markdown
from cifar_lightning.runs.results import rows_of
from cifar_lightning.system import escaping
from cifar_lightning.variants.agreement import Agreement


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        format: As `check_format` returns it.
        files: Their names, that which is loaded first.
        example: Lines that load and call it.
        found: How its logits agree with the network's.
        images_are: Of what images: ``test`` or ``random``.
    """

    format: str
    files: list[str]
    example: str
    found: Agreement
    images_are: str


def card(folder: Path, exported: Exported) -> str:
    """Write the model card of a run's export in Markdown."""
    run = load_run(folder)
    settings = OmegaConf.to_yaml(OmegaConf.create(identity.training_config(run.config)))
    values = {
        "run": run,
        "name": Markup(escaping.markdown_code(run.name)),
        "exported": exported,
        "data": run.config["data"],
        "table": Markup(markdown(rows_of(folder))),
        "settings": Markup(escaping.markdown_block(settings, "yaml")),
    }
    return escaping.render("deploy/model_card.md.jinja", escaping.markdown, values)
