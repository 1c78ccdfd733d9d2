"""
Narrowband astronomical imaging on top of ccdproc.

A night of raw frames goes in; calibrated, registered, inverse-variance coadds
in electron/s, catalogues and growth curves come out, with error bars.
"""

__version__ = "0.1.dev0"
