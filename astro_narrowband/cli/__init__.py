"""
The command line: argparse over the pipeline. Results on stdout, messages on stderr.

This file imports nothing heavy: signals are listened to before the libraries load.
"""

import sys

from astro_narrowband.cli._process import ready_streams, stoppable

__all__ = ["main"]


def main(args=None):
    """
    Run ``astro-narrowband``.

    Parameters
    ----------
    args : list of str, optional
        The arguments; default is ``sys.argv[1:]``.

    Returns
    -------
    int
        0 done, 2 usage, 3 input unusable, 4 partial (a whole filter could not
        be made), 5 environment (space, permission), 70 a bug, 130, 143 and
        129 stopped by Ctrl-C, SIGTERM and SIGHUP.
    """

    def command():
        from astro_narrowband.cli._commands import run

        return run(sys.argv[1:] if args is None else args)

    ready_streams()
    return stoppable(command, last=args is None)
