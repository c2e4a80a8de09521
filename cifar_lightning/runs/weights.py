"""Reading files of weights: a run's, and those that lie by themselves."""

from hashlib import sha256
from pathlib import Path

from cifar_lightning.errors import UserError
from cifar_lightning.runs.find import find_run, is_weights, load_run
from cifar_lightning.runs.folder import RunFolder
from cifar_lightning.runs.run import Network, Run
from cifar_lightning.system import untrusted

DIGITS = 16  # of a digest, that tell weights apart


def initial_weights(outputs: Path, given: str) -> dict[str, str]:
    """Tell of the weights that a run begins with what its configuration holds.

    Args:
        outputs: Where runs are.
        given: A finished run, as `find_run` takes it, or a file of weights.

    Returns:
        ``run``, which trained them, and ``weights``, the beginning of their digest, by which they
        are part of the new run's identity; and ``path``, where they lie here.

    Raises:
        UserError: If there are none.
    """
    if is_weights(given):
        path = Path(given)
        network, content = read_network(path)
        name = network.run
    else:
        folder = find_run(outputs, given, "init")
        path, run = RunFolder(folder).weights, load_run(folder)
        name, content = run.name, read_weights(folder, run)
    return {"run": name, "weights": sha256(content).hexdigest()[:DIGITS], "path": str(path)}


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
