"""The planes of a dark model: their names, its flags, and the FITS file that has them."""

import hashlib
from pathlib import Path

import numpy as np
from astropy.io import fits

from astro_narrowband._engine.door import door, whole_numbers
from astro_narrowband._engine.files import set_card
from astro_narrowband._engine.frames import FitsImage, row_bands
from astro_narrowband.exceptions import InputError

#: Bits of the flag plane.
FLAGS = {"NONLINEAR": 1, "SATURATED": 2, "UNCERTAIN": 4, "NEGATIVE": 8}

#: Names of the planes, in the order in which they are written.
PLANES = ("offset", "rate", "var_offset", "var_rate", "cov", "flags")

#: A pixel this many sigma above its neighbourhood is believed itself.
FAR = 4.0
#: Scatter between frames, over what is expected, from which a pixel is not to be trusted.
NOISY = 3.0


def empty_planes(shape):
    """Return planes of zeros."""
    planes = {name: np.zeros(shape, np.float32) for name in PLANES[:-1]}
    return planes | {PLANES[-1]: np.zeros(shape, np.uint8)}


@door(value=whole_numbers)
def decode_flags(value):
    """
    Return the names of the flags in a value of the flag plane.

    Examples
    --------
    >>> from astro_narrowband.darks import decode_flags
    >>> decode_flags(3)
    ('NONLINEAR', 'SATURATED')
    """
    return tuple(name for name, bit in FLAGS.items() if np.any(np.bitwise_and(value, bit)))


def bad_pixels(flags, shape, n_rows):
    """Return the flat indices of pixels flagged SATURATED or UNCERTAIN, of planes read by rows."""
    bad = np.uint8(FLAGS["SATURATED"] | FLAGS["UNCERTAIN"])
    return np.concatenate(
        [
            np.flatnonzero((flags[rows] & bad) != 0) + rows.start * shape[1]
            for rows in row_bands(shape[0], n_rows)
        ]
    )


def token_of(planes, shape, exposures):
    """Return a text that is another one for another dark model, from a sample of its rows."""
    digest = hashlib.blake2b(repr((shape, exposures)).encode(), digest_size=12)
    for y in range(0, shape[0], max(1, shape[0] // 64)):
        for name in ("offset", "rate"):
            digest.update(np.ascontiguousarray(planes[name][slice(y, y + 1)]))
    return digest.hexdigest()


def model_hdul(model):
    """Return the model as an `~astropy.io.fits.HDUList`; the offset is the primary image."""
    header = model.header.copy()
    header["BUNIT"] = "adu"
    header["DARKMODL"] = (model.model, "dark = offset + rate * exposure")
    header["DARKNEXP"] = (len(model.exposures), "number of exposure times")
    for k, (t, n) in enumerate(zip(model.exposures, model.n_frames, strict=True)):
        header[f"DARKT{k}"] = (t, "[s] exposure time")
        header[f"DARKN{k}"] = (n, "darks of this exposure time")
    for k, level in enumerate(model.pedestals):
        header[f"DARKL{k}"] = (level, "[adu] their level beyond the straight lines")
    if model.temperatures is not None:
        header["DARKTMIN"], header["DARKTMAX"] = model.temperatures
    header["DARKTOK"] = (model.token, "what this model is known by")
    for k, note in enumerate(model.notes):
        set_card(header, f"DARKNT{k}", note)
    hdul = fits.HDUList([fits.PrimaryHDU(np.asarray(model.planes["offset"][:]), header)])
    for name in PLANES[1:]:
        hdul.append(fits.ImageHDU(np.asarray(model.planes[name][:]), name=name.upper()))
    if model.measured:
        k = len(model.exposures)
        columns = [fits.Column("pixel", "K", array=model.measured["pixel"])]
        columns += [
            fits.Column(key, f"{k}E", array=np.ascontiguousarray(model.measured[key].T))
            for key in ("mean", "variance")
        ]
        hdul.append(fits.BinTableHDU.from_columns(columns, name="MEASURED"))
    for key, grids in model.glow.items():
        hdul.append(fits.ImageHDU(grids, name=f"GLOW{key.upper()}"))
    return hdul


def read_fields(path):
    """
    Return the fields of the model in a file; its planes stay on disk.

    Raises
    ------
    InputError
        If the file is not a dark model.
    """
    path = Path(path)
    planes = {}
    try:
        with fits.open(path, memmap=False) as hdul:
            header = hdul[0].header.copy()
            for name in PLANES:
                hdu = hdul[0] if name == "offset" else hdul[name.upper()]
                planes[name] = _plane(path, hdu)
            measured = {}
            if "MEASURED" in hdul:
                table = hdul["MEASURED"].data
                measured["pixel"] = table["pixel"].astype(np.int64)
                for key in ("mean", "variance"):
                    # One exposure time makes a plain column of the vector.
                    column = table[key].reshape(len(table), -1)
                    measured[key] = np.ascontiguousarray(column.T, np.float32)
            glow = {
                hdu.name[4:].lower(): np.array(hdu.data, np.float32)
                for hdu in hdul
                if hdu.name.startswith("GLOW")
            }
            shape = hdul[0].shape
            model = header["DARKMODL"]
            n = header["DARKNEXP"]
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: is not a dark model ({error}): make it again") from error
    exposures = tuple(header[f"DARKT{k}"] for k in range(n))
    n_frames = tuple(header[f"DARKN{k}"] for k in range(n))
    temperatures = (header["DARKTMIN"], header["DARKTMAX"]) if "DARKTMIN" in header else None
    return {
        "planes": planes,
        "shape": shape,
        "model": model,
        "exposures": exposures,
        "n_frames": n_frames,
        "temperatures": temperatures,
        "notes": tuple(header[key] for key in header if key.startswith("DARKNT")),
        "header": header,
        "token": header["DARKTOK"],
        "measured": measured,
        "glow": glow,
        "pedestals": tuple(header.get(f"DARKL{k}", 0.0) for k in range(n)),
    }


def _plane(path, hdu):
    """A plane of a file, which is read by rows."""
    stored = np.dtype({8: ">u1", -32: ">f4"}[hdu.header["BITPIX"]])
    return FitsImage.of_file(path, hdu.fileinfo()["datLoc"], stored, hdu.shape)
