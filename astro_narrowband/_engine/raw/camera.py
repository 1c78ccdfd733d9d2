"""What must be alike in two frames before one may calibrate the other."""

from astropy.io import fits

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.files import set_card
from astro_narrowband._engine.provenance import write_creator
from astro_narrowband.exceptions import CalibrationError, InputError
from astro_narrowband.filters import canonical_filter

#: Cards of the first frame that a master keeps: they tell cameras and settings apart.
KEPT = (
    *("XBINNING", "YBINNING", "BINNING", "CCDSUM", "XORGSUBF", "YORGSUBF", "FLIPSTAT"),
    *("MOSAIC", "XBAYROFF", "YBAYROFF", "BAYOFFX", "BAYOFFY", "ROWORDER"),
    *(
        keyword
        for name in (
            *("camera", "gain", "egain", "offset", "readout", "temperature", "noise"),
            *("saturation", "bayer"),
        )
        for keyword in keywords.KEYWORDS[name]
    ),
)

#: Readers of what must be the same, and what it is called.
SAME = {
    "binning": keywords.read_binning,
    "gain": keywords.read_gain_setting,
    "read mode": keywords.read_readout,
    "window": keywords.read_window,
    "colour": lambda header: header.get("MOSAIC"),
}


def master_header(frame, kind, n, *extra):
    """Return the header of a master made of ``n`` frames, of which ``frame`` is the first."""
    header = fits.Header()
    for key in (*KEPT, *extra):
        try:
            card = keywords.one_value(frame.header, key)
        except InputError:
            continue  # a card that cannot be read says nothing, here or to anybody later
        if card is not None:
            set_card(header, key, card[0])
    header["IMAGETYP"] = (f"master {kind}", "made by astro_narrowband")
    header["NCOMBINE"] = (n, "frames combined")
    write_creator(header)
    return header


def refuse_other_camera(name, header, master, what):
    """
    Raise if a frame and its master differ in binning, gain, read mode or window.

    A flat must also be one of the same filter.

    What either of the two does not say is not compared.

    Parameters
    ----------
    name : str
        Of the frame.
    header, master : `~astropy.io.fits.Header`
    what : str
        What the master is called.

    Raises
    ------
    CalibrationError
    """
    for label, reader in SAME.items():
        ours, theirs = reader(header), reader(master)
        if ours and theirs and ours != theirs:
            raise CalibrationError(
                f"{name}: its {label} is {ours}, that of its {what} {theirs}: take a {what} of "
                f"the same {label}"
            )
    ours, theirs = (_filter(h) for h in (header, master))
    if what == "flat" and ours and theirs and ours != theirs:
        raise CalibrationError(
            f"{name}: was taken through {ours}, its flat through {theirs}: take a flat of {ours}"
        )


def _filter(header):
    """The name of the filter, as the table of frames has it, or by the header alone."""
    names = keywords.read_filter(header).split("+")
    return header.get("FILTUSED") or "+".join(dict.fromkeys(map(canonical_filter, names)))
