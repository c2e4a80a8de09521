"""Reading files of weights: a run's, and those that lie by themselves."""

from hashlib import sha256
from pathlib import Path

from cifar_lightning.errors import UserError
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Network, Run
from cifar_lightning.system import untrusted


def read_weights(folder: Path, run: Run) -> bytes:
    """Read a run's weights, as they are in its file.

    Raises:
        UserError: If they are missing, or not those that the run's record was written with.
    """
    path = RunFolder(folder).weights
    try:
        content = untrusted.read(path, untrusted.MAX_WEIGHTS)
        if sha256(content).hexdigest() != run.weights:
            network = Network.from_weights(content)
            other = "they were changed" if network.run == run.name else f"they are of {network.run}"
            raise ValueError(other)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: not the weights of this run ({reason}); rerun=true trains them again"
        ) from error
    return content


def read_network(path: Path) -> tuple[Network, bytes]:
    """Read a file of weights that says of which network they are.

    Raises:
        UserError: If it is missing, damaged, or none that was written here.
    """
    try:
        content = untrusted.read(path, untrusted.MAX_WEIGHTS)
        return Network.from_weights(content), content
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        said = f"not a file of weights that was written here ({reason})"
        raise UserError(f"{path}: {said}") from error
