"""What differs between two rows of a comparison, and what it did."""

from cifar_lightning.comparison.entry import Group
from cifar_lightning.comparison.leaderboard import Leaderboard, Place
from cifar_lightning.runs.changes import settings_changes


def changes(base: Group, group: Group) -> list[str]:
    """Tell what differs from the baseline's configuration, as `settings_changes`."""
    found = settings_changes(base.runs[0], group.runs[0])
    for name in ("variant", "threads"):
        if (before := getattr(base, name)) != (after := getattr(group, name)):
            found.append(f"{name} {before} → {after}")
    return found


def effect(leaderboard: Leaderboard, place: Place) -> str:
    """Tell what the changes from the baseline did to accuracy, latency and size."""
    (base_entry, base), (entry, group) = leaderboard.baseline, place
    points = group.accuracy.mean - base.accuracy.mean
    sure = leaderboard.above(group, base) or leaderboard.above(base, group)
    told = f"accuracy {points:+.2f} points{'' if sure else ' (tie)'}"
    if entry is base_entry:
        told += ", latency the same: one candidate"
    elif (found := leaderboard.difference(entry, base_entry)) is None:
        told += ", latency not related"
    else:
        tie = "" if found.slower or (-found).slower else " (tie)"
        told += f", latency {100 * (found.ratio[0] - 1):+.0f} %{tie}"
    if not (group.size_mb and base.size_mb):
        return told
    return f"{told}, size {100 * (group.size_mb / base.size_mb - 1):+.0f} %"
