"""The model card of an export: what it is, how to load it, how good it is, how it was made."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from markupsafe import Markup
from omegaconf import OmegaConf

from cifar_lightning.benchmark.candidates import Source
from cifar_lightning.deploy.evaluated import Evaluated
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
        format: As `Wanted` names it.
        files: Their names, that which is loaded first.
        example: Lines that load and call it.
        found: How its logits agree with the network's.
        images_are: Of what images: ``test`` or ``random``.
        digests: SHA-256 of the files, by their names; none where they are the weights.
        size_bytes: Of all of them.
        packages: That execute it, beside numpy; none where that is this project.
        evaluated: What was measured of it.
        notes: Facts on the files.
    """

    format: str
    files: list[str]
    example: str
    found: Agreement
    images_are: str
    digests: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int = 0
    packages: tuple[str, ...] = ()
    evaluated: Evaluated = field(default_factory=Evaluated)
    notes: Mapping[str, float | str] = field(default_factory=dict)


def card(source: Source, exported: Exported) -> str:
    """Write the model card of an export in Markdown."""
    network, candidate = source.network, source.candidate
    assert network is not None
    values = {
        "label": candidate.label,
        "architecture": candidate.network,
        "network": network,
        "name": Markup(escaping.markdown_code(network.run)),
        "exported": exported,
        "evaluated": exported.evaluated,
        "measured": exported.evaluated.measurement,
        "packages": exported.packages,
        "run": None,
    }
    if source.folder is not None:
        run = load_run(source.folder)
        settings = OmegaConf.to_yaml(OmegaConf.create(identity.training_config(run.config)))
        values |= {
            "run": run,
            "data": run.config["data"],
            "table": Markup(markdown(rows_of(source.folder))),
            "settings": Markup(escaping.markdown_block(settings, "yaml")),
        }
    return escaping.render("deploy/model_card.md.jinja", escaping.markdown, values)
