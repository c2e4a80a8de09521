"""Export a finished run's network, checked against it, with a model card.

    python -m cifar_lightning.export run=B1 format=onnx

The network takes normalised images, as in training; the card says how.
"""

import logging
from pathlib import Path

from cifar_lightning.benchmark.candidates import of_query
from cifar_lightning.benchmark.load import RunData
from cifar_lightning.cli.command import command
from cifar_lightning.config.schema import ExportConfig
from cifar_lightning.deploy.export import export
from cifar_lightning.deploy.wanted import Wanted
from cifar_lightning.errors import UserError
from cifar_lightning.system.files import check_inside, is_disk_full
from cifar_lightning.system.formatting import relative
from cifar_lightning.system.openmp_waiting import computing

log = logging.getLogger(__name__)


@command("export", ExportConfig)
def main(config: ExportConfig) -> None:
    """Export a finished run."""
    wanted, outputs = Wanted(config.format, config.opset).checked(), Path(config.outputs)
    source = of_query(outputs, config.run, wanted.variant, threads=1)
    to = Path(config.to or outputs / "exports" / str(source.candidate.run))
    check_inside(outputs, to)
    try:
        with computing():
            data = RunData(config.data_root, check=config.data_check)
            path = export(source, wanted, to, data)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"to={to}: {error.strerror}: {error.filename}") from error
    log.info("%s", relative(path.absolute()))
