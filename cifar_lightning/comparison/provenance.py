"""How a leaderboard came about, for captions: machine, versions, protocol, seeds and commits."""

from collections.abc import Iterable, Iterator

from cifar_lightning.comparison.leaderboard import Leaderboard
from cifar_lightning.system import environment


def provenance(leaderboard: Leaderboard) -> str:
    """Say in sentences where and with what a leaderboard's rows were trained and measured."""
    return " ".join(_sentences(leaderboard))


def _sentences(leaderboard: Leaderboard) -> Iterator[str]:
    conditions = leaderboard.conditions
    ones = [entry.measurement for entry in leaderboard.entries]
    runs = [run for entry in leaderboard.entries for run in entry.group.runs]
    machine = ones[0].environment.machine
    rounds = [one.rounds or 0 for one in ones]
    fewest, most = min(rounds), max(rounds)
    yield (
        f"Latency of one image on {conditions.device} ({machine.system}, {machine.cores} cores), "
        f"{conditions.protocol} protocol (version {conditions.protocol_version}), "
        f"{f'{fewest} to {most}' if fewest < most else most} interleaved rounds."
    )
    versions: dict[str, dict[str, None]] = {}
    for one in ones:
        for name, version in (*one.environment.versions.items(), *one.engines.items()):
            versions.setdefault(name, {})[version] = None
    told = ", ".join(f"{name} {' and '.join(several)}" for name, several in versions.items())
    yield f"Measured with {_commits(one.code for one in ones)}: {told}."
    seeds = ", ".join(str(seed) for seed in sorted({run.config["seed"] for run in runs}))
    yield (
        f"Trained on {conditions.dataset} ({conditions.fingerprint[:8]}) with "
        f"{_commits(run.code for run in runs)}, seeds {seeds}."
    )


def _commits(codes: Iterable[environment.Code]) -> str:
    return " and ".join(dict.fromkeys(map(commit, codes)))


def commit(code: environment.Code) -> str:
    """Name the state of the code."""
    dirty = " with changes" if code.dirty else ""
    return (f"commit {code.commit[:8]}" if code.commit else "no commit") + dirty
