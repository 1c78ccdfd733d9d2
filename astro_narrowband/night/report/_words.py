"""
Numbers, settings, reasons and headlines as the page writes them.

Private to `astro_narrowband.night.report`.
"""

import base64
import math
import re

from astro_narrowband._engine.text import one_line


def printed(value):
    """What the template prints: one line without control characters, before it is escaped."""
    if value is None:
        return ""
    return value if hasattr(value, "__html__") else one_line(value)


def number(value, digits=3):
    """A number with ``digits`` significant ones, or a dash."""
    if value is None or (not value and value != 0):  # also what the template finds undefined
        return "–"
    if isinstance(value, str | bool):
        return value
    try:
        value = float(value)
    except (TypeError, ValueError):
        return "–"
    if not math.isfinite(value):
        return "–"
    if value == 0 or (value == int(value) and abs(value) < 1e6):
        return f"{int(value)}".replace("-", "−")
    power = math.floor(math.log10(abs(value)))
    if -4 <= power < 6:
        text = f"{value:.{max(0, digits - 1 - power)}f}"
    else:
        text = f"{value:.{digits - 1}e}"
    return text.replace("-", "−")


def fixed(value, decimals):
    """A number with ``decimals`` decimals, for a column, or a dash."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:.{decimals}f}".replace("-", "−")


def breaks(name):
    """A name of a file that a narrow page breaks after its underscores, escaped."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(text) for text in one_line(name).split("_"))


def data_url(png):
    from markupsafe import Markup

    return Markup("data:image/png;base64," + base64.b64encode(png).decode())  # noqa: S704


def cause_of(reason):
    """
    Return a reason as its cause and the rest.

    Examples
    --------
    >>> from astro_narrowband.night.report._words import cause_of
    >>> cause_of("truncated: 20000 bytes of 205120; copy it again")
    ('truncated', '20000 bytes of 205120; copy it again')
    """
    text = one_line(reason or "")
    split = re.search(r":\s|;\s|\s\(", text)
    if split is None:
        return text, ""
    return text[: split.start()], text[split.start() :].lstrip(":; ")


def settings_words(settings):
    """
    Return the settings that say something, as text.

    Examples
    --------
    >>> from astro_narrowband.night.report._words import settings_words
    >>> settings_words({"stars": (), "gain": None, "filters": ("Halpha", "OIII"), "reject": True})
    {'filters': 'Halpha, OIII', 'reject': 'yes'}
    """
    return {name: _words(value) for name, value in settings.items() if _says(value)}


def _says(value):
    return value is not None and not (isinstance(value, str | list | tuple | dict) and not value)


def _words(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        value = [f"{name} = {_words(item)}" for name, item in value.items()]
    if isinstance(value, list | tuple):
        nested = any(isinstance(item, list | tuple) for item in value)
        return ("; " if nested else ", ").join(_words(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


#: Depths are for so many standard deviations.
SIGMAS = 5.0


def depth(sigma, ratio=1.0, *, radius=None, annulus=None, correction=1.0, scale=None):
    """
    Return the faintest point source, and surface brightness, that stand out of blank sky.

    Parameters
    ----------
    sigma : float
        Predicted noise of a pixel of blank sky, right for sums over areas [electron/s].
    ratio : float, optional
        Noise of apertures on blank sky, measured over predicted.
    radius : float, optional
        Of the aperture [pix]; without one there is no depth of point sources.
    annulus : tuple of float, optional
        Radii of the sky annulus [pix], whose error counts.
    correction : float, optional
        From the aperture to the whole light.
    scale : float, optional
        Side of a pixel [arcsec].

    Returns
    -------
    point : float or None
        Flux at 5 sigma [electron/s].
    surface : float
        At 5 sigma, of an area of one arcsec**2, or of one pixel without a scale
        [electron/s per arcsec**2 or pixel].

    Examples
    --------
    >>> from astro_narrowband.night.report._words import depth
    >>> point, surface = depth(0.03, radius=4.0, scale=0.5)
    >>> print(f"{point:.2f} {surface:.2f}")
    1.06 0.30
    """
    sigma = sigma * ratio
    point = None
    if radius:
        area, sky = math.pi * radius**2, 0.0
        if annulus:
            sky = area / (math.pi * (annulus[1] ** 2 - annulus[0] ** 2))
        point = SIGMAS * sigma * math.sqrt(area * (1 + sky)) * correction
    return point, SIGMAS * sigma / (scale or 1.0)


def headline(view, cards, catalog):
    """
    Return what stands on the card of a filter, as ``(label, value, remark)``.

    Parameters
    ----------
    view : dict
        Of the group: ``n_used``, ``n_frames``, ``exposure_total``, ``fwhm``, ``unit``.
    cards : dict
        Of the coadd: ``blank`` (predicted noise of blank sky), ``scale`` [arcsec], and the cards
        of its self-test, None where not known.
    catalog : dict or None
        ``n``, ``n_seen`` (S/N above 5), ``r``, ``r_in``, ``r_out``, ``correction``.
    """
    unit, scale, facts = view["unit"], cards["scale"], []
    ratio = _known(cards.get("NOISEAPR"))
    catalog = catalog or {}
    if _known(cards["blank"]):
        annulus = (catalog.get("r_in"), catalog.get("r_out"))
        point, surface = depth(
            cards["blank"], ratio or 1.0, radius=catalog.get("r"),
            annulus=annulus if all(annulus) else None,
            correction=catalog.get("correction") or 1.0, scale=scale,
        )  # fmt: skip
        if point:
            circle = f"{unit}; aperture of {number(catalog['r'], 2)} pix, whole light"
            facts.append(("Point source at 5 σ", number(point, 2), circle))
        per = "arcsec²" if scale else "pixel"
        facts.append(("Surface at 5 σ", number(surface, 2), f"{unit} per {per}, in an area of one"))
    fwhm = _known(view["fwhm"])
    if fwhm:
        small = f"{number(fwhm)} pix of {number(scale, 3)}″" if scale else "no scale in the header"
        sharp = f"{number(fwhm * scale, 3)}″" if scale else f"{number(fwhm)} pix"
        facts.append(("Seeing (FWHM)", sharp, small))
    facts.append(
        ("Frames", f"{number(view['n_used'])} of {view['n_frames']}", "used of those there")
    )
    facts.append(
        ("Exposure", _duration(view["exposure_total"]), f"{number(view['exposure_total'], 5)} s")
    )
    if catalog.get("n_seen") is not None:
        facts.append(("Sources", number(catalog["n_seen"]), f"S/N > 5, of {catalog['n']}"))
    facts.append(_noise(cards, ratio))
    return facts


def _noise(cards, ratio):
    """Noise, measured over predicted, of what there is to say of."""
    pixels, factor = _known(cards.get("NOISEPIX")), _known(cards.get("ERRSCALE"))
    if pixels is None and ratio is None:
        return ("Noise over predicted", "–", "no blank sky tells")
    remark = f"pixels {_ratio(pixels)}, apertures {_ratio(ratio)}"
    if factor and abs(factor - 1) > 0.001:
        remark += f"; errors were multiplied by {number(factor)}"
    elif ratio and ratio > 1.5:
        remark += ": nebula under the apertures, not noise"
    return ("Noise over predicted", _ratio(pixels if pixels is not None else ratio), remark)


def _ratio(value):
    return "–" if value is None else f"{value:.2f}"


def _known(value):
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good and math.isfinite(value) else None


def _duration(seconds):
    seconds = _known(seconds)
    if seconds is None:
        return "–"
    if seconds >= 5400:
        return f"{number(seconds / 3600, 3)} h"
    return f"{number(seconds / 60, 3)} min" if seconds >= 120 else f"{number(seconds, 3)} s"


def messages_of(messages, group, *, alone=False):
    """Return the messages that name a group or a frame of it, worst first; all if it is alone."""
    names = {str(frame.get("path") or "").rpartition("/")[2] for frame in group["frames"]}
    names = {name for name in names if name} | ({group["label"]} if group.get("label") else set())
    mine = [m for m in messages if alone or any(name in str(m.get("text")) for name in names)]
    worth = {"error": 0, "warning": 2}

    def rank(message):
        noise = "noise of blank sky" in str(message.get("text"))
        return 1 if noise else worth.get(str(message.get("level")), 3)

    return sorted(mine, key=rank)
