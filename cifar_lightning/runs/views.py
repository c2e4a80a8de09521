"""Files that are derived from records: replaced together; what somebody else wrote is kept."""

import itertools
import logging
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from cifar_lightning.system.files import open_regular, write_all, write_atomically

log = logging.getLogger(__name__)


def replace_views(folder: Path, views: Mapping[str, str | bytes], digests: str) -> None:
    """Replace files of ours, all of them together, and remove those that are views no longer.

    A file that is not as it was written last is somebody else's: it is kept beside the new one.

    Args:
        folder: Is made if needed.
        views: By the files' names.
        digests: Name of the file that lists what was written last, as ``sha256sum`` does.

    Raises:
        OSError: If one can't be written; all old files are still there then.
    """
    record = folder / digests
    lines = record.read_text(errors="replace").splitlines() if record.is_file() else []
    earlier = {tuple(line.split("  ", 1)) for line in lines if line.count("  ") == 1}
    now: set[tuple[str, ...]] = {(_digest(content), name) for name, content in views.items()}
    for path in [folder / name for name in views]:
        if path.is_file() and not _is_one_of(path, earlier | now):
            kept = _free_name(path)
            path.rename(kept)
            log.warning("%s was changed by hand; kept as %s", path, kept.name)
    # Old and new ones count until all are in place: a kill in between is no change by hand.
    write_all(folder, {digests: _listed(earlier | now)} | dict(views))
    for name in {name for _, name in earlier} - views.keys():
        path = folder / Path(name).name
        if path.is_file() and _is_one_of(path, earlier):
            path.unlink(missing_ok=True)
    write_atomically(record, _listed(now))


def _listed(digests: set[tuple[str, ...]]) -> str:
    return "".join(f"{digest}  {name}\n" for digest, name in sorted(digests))


def _digest(content: str | bytes) -> str:
    return sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _is_one_of(path: Path, written: set[tuple[str, ...]]) -> bool:
    try:
        with open_regular(path) as stream:
            return (_digest(stream.read()), path.name) in written
    except OSError:
        return False


def _free_name(path: Path) -> Path:
    numbered = (path.with_name(f"{path.stem}.kept-{n}{path.suffix}") for n in itertools.count(1))
    return next(candidate for candidate in numbered if not candidate.exists())
