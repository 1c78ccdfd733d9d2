"""The groups of a target: as they were, and panels that only their stars tell apart."""

import re
from dataclasses import replace

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


#: What the table of lights left out has in place of a reason where a light went to a panel.
MOVED = "went to "


class Panels:
    """
    Lights of a run that share no stars with those of their group, in groups of their own.

    Attributes
    ----------
    moved : dict
        Of each group, the lights that left it: name of the file, and where it went.
    """

    def __init__(self):
        self.moved, self._waiting, self._names = {}, {}, set()

    def name_for(self, group):
        """Return the name of a further panel of a group's object."""
        base = re.sub(r" panel \d+$", "", group.object)
        number = 2
        while (name := f"{base} panel {number}") in self._names | {group.object}:
            number += 1
        self._names.add(name)
        return name

    def move(self, row, group, name):
        """Move a light into the panel ``name``, with what calibrates it."""
        panels = self._waiting.setdefault(name, {})
        if group not in panels:
            label = group.label.replace(group.object, name, 1)
            panels[group] = replace(group, object=name, label=label, lights=[], lost=[])
            for other in (*group.bias, *group.darks, *group.flats):
                other.serves[label] = ""
        panel = panels[group]
        group.lights.remove(row)
        panel.lights.append(row)
        del row.serves[group.label]
        row.serves[panel.label] = ""
        self.moved.setdefault(group, []).append((row.name, MOVED + name))
        self._names.add(name)

    def moved_before(self, reason):
        """Return the panel that a light went to in an earlier run, ``""`` if it was left out."""
        return reason.removeprefix(MOVED) if reason.startswith(MOVED) else ""

    def take(self):
        """Return the panels that wait to be reduced, each a list of groups, once."""
        waiting, self._waiting = self._waiting, {}
        return [list(groups.values()) for groups in waiting.values()]
