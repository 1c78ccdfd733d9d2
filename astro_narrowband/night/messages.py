"""What there is to say about a run: each thing once, shown and kept."""

import threading
import warnings
from contextlib import contextmanager

from astro_narrowband.exceptions import NarrowbandWarning, listening

__all__ = ["Messages", "overheard"]


class Messages:
    """
    Messages of a run; a context manager that hears what is said with `warn` as well.

    Other runs, in other threads of this process, have their own.

    Attributes
    ----------
    found : list of dict
        ``{"level": "warning" or "error", "text": one line}``, in the order said.
    """

    def __init__(self):
        self.found = []
        self._seen, self._lock = set(), threading.Lock()

    def __enter__(self):
        self._context = listening(self.say)
        self._show = self._context.__enter__() or _show
        return self

    def __exit__(self, *error):
        return self._context.__exit__(*error)

    def say(self, text, level="warning"):
        """Say something, unless it was said already."""
        with self._lock:
            if text in self._seen:
                return
            self._seen.add(text)
            self.found.append({"level": level, "text": text})
        self._show(text, level)


@contextmanager
def overheard():
    """Yield the list of text and level of all that is said in this context, as it is."""
    said = []

    def hear(text, level):
        said.append((text, level))
        (before or _show)(text, level)

    with listening(hear) as before:
        yield said


def _show(text, level):  # noqa: ARG001
    """Show a message where nobody else does; no filter of warnings silences a run."""
    warnings.showwarning(NarrowbandWarning(text), NarrowbandWarning, __name__, 0)
