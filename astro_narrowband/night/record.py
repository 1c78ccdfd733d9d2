"""
What ``night.json`` says about a coadd and its frames.

The table of frames travels inside the coadd's file (extension FRAMES), so that
a product that is used again tells as much as one that was just made.
"""

from urllib.parse import quote, unquote

import numpy as np
from astropy.io import fits
from astropy.table import QTable, Table

from astro_narrowband.exceptions import InputError

__all__ = ["frames_record", "frames_table", "group_record", "read_frames", "with_frames"]

#: Cards of a coadd in which noise was measured over predicted.
SELF_TEST = ("NOISEPIX", "NOISEBLK", "NOISEAPR", "NOISELIN", "ERRSCALE")
#: Pixels that are looked at for the level and the noise of a coadd.
SAMPLE = 1 << 20
#: Columns of the table of frames that hold paths, and what stays as it is in them.
_PATHS = ("path", "reference")
_READABLE = "".join(chr(code) for code in range(32, 127) if chr(code) != "%")


def frames_table(lights, coadd, reference):
    """
    Return what is known of the lights that a coadd is made of, one row each.

    Parameters
    ----------
    lights : sequence
        With ``row`` (path, exposure), ``alignment`` and ``stars``, in the order of
        ``coadd.frames``.
    coadd : `~astro_narrowband.coaddition.Coadd`
    reference : str
        The frame on whose grid the coadd lies.

    Returns
    -------
    `~astropy.table.QTable`
    """
    used = np.asarray(coadd.frames["used"])
    table = QTable(coadd.frames[used])
    table.remove_columns(["name", "used", "reason", "exposure", "dx", "dy"])
    lights = [light for light, is_used in zip(lights, used, strict=True) if is_used]
    alignments = [light.alignment for light in lights]
    table["path"] = [light.row.name for light in lights]
    table["date"] = [light.row.date for light in lights]
    table["exposure"] = [light.frame.exposure for light in lights]
    table["dx"], table["dy"] = np.transpose([a.shift for a in alignments])
    for name in ("rotation", "rms", "n_matched", "method", "flip"):
        table[name] = [getattr(a, name) for a in alignments]
    table["reference"] = [reference] * len(table)
    table["matrix"] = np.array([a.matrix for a in alignments])
    return table


def with_frames(hdul, table, lost):
    """
    Append ``table`` to a coadd's HDUs, as FRAMES; its numbers are in pix, s and electron/s.

    ``lost`` has the path and the reason of each light that it had to do without, for LEFTOUT.
    Text is percent-encoded, for FITS has no letters but those of ASCII.
    """
    plain = Table(table)
    for name in _PATHS:
        plain[name] = [quote(path, safe=_READABLE) for path in table[name]]
    for column in plain.itercols():
        column.unit = None  # electron/s is no unit of the FITS standard
    hdul.append(fits.BinTableHDU(plain, name="FRAMES"))
    if lost:
        rows = [[quote(text, safe=_READABLE) for text in row] for row in lost]
        hdul.append(fits.BinTableHDU(Table(rows=rows, names=("path", "reason")), name="LEFTOUT"))
    return hdul


def read_frames(path):
    """
    Return the table of frames in a coadd's file, and the path and reason of those left out.

    Raises
    ------
    InputError
        If there is none.
    """
    try:
        table = QTable.read(path, hdu="FRAMES", mask_invalid=False)
    except (KeyError, OSError) as error:
        raise InputError(f"{path}: has no table of frames ({error}): run reduce again") from None
    for name in _PATHS:
        table[name] = [unquote(path) for path in table[name]]
    with fits.open(path) as hdul:
        rows = hdul["LEFTOUT"].data if "LEFTOUT" in hdul else ()
        return table, [(unquote(row["path"]), unquote(row["reason"])) for row in rows]


def group_record(group, *, frames=None, coadd=None, products=None):
    """
    Return a group of lights as ``night.json`` has it.

    Parameters
    ----------
    group : `~astro_narrowband.night.plan.Group`
    frames : `~astropy.table.QTable`, optional
        From `frames_table`; ``None`` where the group failed.
    coadd : path-like, optional
        Of the coadd.
    products : dict, optional
        Names of the products.

    Returns
    -------
    dict
    """
    record = {
        "object": group.object,
        "filter": group.filter,
        "label": group.label,
        "without": list(group.without),
        "reference": "",
        "status": "failed" if coadd is None else "done",
        "reason": group.reason,
        "products": products or {},
        "frames": [],
    }
    if coadd is not None:
        record.update(_of_frames(frames_record(frames)), **_of_pixels(coadd))
        record["reference"] = str(frames["reference"][0])
    lost = group.lost if coadd is not None else [*group.lights, *group.lost]
    record["frames"] += [
        {
            "path": row.name,
            "verdict": "left out",
            "reason": row.serves[group.label],
            "exposure": row.exposure,
            "date": row.date,
        }
        for row in lost
    ]
    return record


def frames_record(table):
    """Return the frames of a `frames_table` as ``night.json`` has them: a list of dicts."""
    frames = []
    for row in table:
        frame = {name: _plain(row[name]) for name in table.colnames if name != "reference"}
        frames.append({"verdict": "used", "reason": "", **frame})
    return frames


def _of_frames(frames):
    return {
        "frames": frames,
        "n_used": len(frames),
        "exposure_total": float(np.sum([frame["exposure"] for frame in frames])),
        "fwhm": float(np.nanmedian([frame["fwhm"] for frame in frames])),
    }


def _plain(value):
    value = getattr(value, "value", value)
    return value.tolist() if hasattr(value, "tolist") else value


def _of_pixels(path):
    with fits.open(path, memmap=True) as hdul:
        header, size = hdul[0].header, hdul[0].data.size
        step = max(1, size // SAMPLE)
        data, sigma = (hdul[i].data.ravel()[::step].astype(np.float32) for i in (0, "UNCERT"))
    good = np.isfinite(data) & np.isfinite(sigma)
    if not good.any():
        return {"sky": None, "noise": None}
    return {
        "sky": float(np.median(data[good])),
        "noise": float(np.median(sigma[good])),
        "self_test": {key: header[key] for key in SELF_TEST if key in header},
    }
