"""The groups of a target as they were, for a target that is done again."""

#: The frames of a group.
_LISTS = ("lights", "bias", "darks", "flats", "lost")


def snapshot(target):
    """Return what puts the groups of a target and their frames back to what they are now."""
    groups = [(g, {n: list(getattr(g, n)) for n in _LISTS}, g.reason) for g in target]
    rows = [(r, r.verdict, r.reason, dict(r.serves)) for g in target for r in g.rows]

    def restore():
        for group, lists, reason in groups:
            group.reason = reason
            for name, frames in lists.items():
                setattr(group, name, list(frames))
        for row, verdict, reason, serves in rows:
            row.verdict, row.reason, row.serves = verdict, reason, dict(serves)

    return restore
