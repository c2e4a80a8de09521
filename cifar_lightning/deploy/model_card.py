"""The model card: what a network is, how to load it, how good it is, how it was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup
from omegaconf import OmegaConf

from cifar_lightning.deploy.formats import Format
from cifar_lightning.runs import identity
from cifar_lightning.runs.find import load_run
from cifar_lightning.runs.markdown import markdown
from cifar_lightning.runs.results import rows_of
from cifar_lightning.system import escaping


@dataclass(frozen=True)
class Agreement:
    """How an exported network's logits compare with the run's.

    Attributes:
        images: Number of test images.
        difference: Largest absolute difference of a logit.
        same_class: Images that get the same class.
    """

    images: int
    difference: float
    same_class: int


def card(folder: Path, form: Format, found: Agreement) -> str:
    """Write a run's model card in Markdown."""
    run = load_run(folder)
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("cifar_lightning.deploy", "."),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        # What the template does not mark as Markdown is text, names of other people's among it.
        finalize=lambda value: (
            escaping.markdown(value)
            if isinstance(value, str) and not isinstance(value, Markup)
            else value
        ),
    )
    settings = OmegaConf.to_yaml(OmegaConf.create(identity.training_config(run.config)))
    return templates.get_template("model_card.md.jinja").render(
        run=run,
        name=Markup(escaping.markdown_code(run.name)),
        form=form,
        data=run.config["data"],
        found=found,
        table=Markup(markdown(rows_of(folder))),
        settings=Markup(escaping.markdown_block(settings, "yaml")),
    )
