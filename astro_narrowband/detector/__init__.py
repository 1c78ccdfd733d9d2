"""
Gain, read noise and saturation of a camera: given, read from a header, or measured.

`decide_detector` is the one place where they are decided, each for itself: what
the user gives comes first, then the header, then a measurement from pairs of
flats and pairs of biases, and of the saturation from full pixels. Where each value
came from is kept as text.
"""

from dataclasses import dataclass, field, replace

from astropy import units as u

from astro_narrowband._engine import headers as keywords
from astro_narrowband._engine.door import a_sequence, check_fields, door, items, of_class, real
from astro_narrowband._engine.frames import as_frame, as_frames
from astro_narrowband._engine.validate import value_in
from astro_narrowband.detector._measure import (
    SAMPLE,
    gain_of_lights,
    measure_saturation,
    photon_transfer,
    read_noise_of,
)
from astro_narrowband.exceptions import InputError

__all__ = [
    "POSSIBLE",
    "Detector",
    "confront_detector",
    "decide_detector",
    "gain_of_lights",
    "measure_saturation",
]

#: Level [adu] taken for saturation where nothing else is known: the full scale
#: of 16 bits, less the last step of a 12-bit camera that multiplies by 16.
FULL_SCALE = 65504.0

_GAIN_UNIT = u.electron / u.adu
#: Values that a camera may have; far beyond them float32 ends.
POSSIBLE = {
    "gain": real(_GAIN_UNIT, least=1e-5, most=1e5),
    "read_noise": real(u.electron, least=0.0, most=1e5),
    "saturation": real(u.adu, least=1e-3, most=1e12),
    "gain_err": real(least=0.0),
    "read_noise_err": real(least=0.0),
    "sources": items,
}
_HOW = {
    "gain": "give --gain, or two raw flats and a bias or dark to measure it from",
    "read_noise": "give --read-noise, or two raw biases or darks to measure it from",
}


@door(saturation=real(u.adu, above=0))
@dataclass(frozen=True)
class Detector:
    """
    What a camera makes of electrons.

    Attributes
    ----------
    gain : float
        [electron/adu]
    read_noise : float
        [electron], without the rounding to whole adu.
    saturation : float
        Raw level from which a pixel is not believed [adu], bias included.
    gain_err, read_noise_err : float
        Standard errors where measured, otherwise 0.
    sources : dict of str
        Where ``gain``, ``read_noise`` and ``saturation`` came from, as text.

    Examples
    --------
    >>> from astro_narrowband.detector import Detector
    >>> camera = Detector(gain=0.6, read_noise=5.0)
    >>> camera.gain, camera.saturation
    (0.6, 65504.0)
    """

    gain: float
    read_noise: float
    saturation: float = FULL_SCALE
    gain_err: float = 0.0
    read_noise_err: float = 0.0
    sources: dict = field(default_factory=dict, compare=False)

    def __post_init__(self):
        check_fields(self, **POSSIBLE)

    @property
    def floor(self):
        """Variance of a pixel without a single electron [electron**2]."""
        return self.read_noise**2 + self.gain**2 / 12

    @property
    def noise_adu(self):
        """Standard deviation of one bias pixel [adu], rounding included."""
        return self.floor**0.5 / self.gain

    def describe(self):
        """Return one line of text that says what the values are and where they come from."""
        units = {"gain": "electron/adu", "read_noise": "electron", "saturation": "adu"}
        items = []
        for name, unit in units.items():
            error, source = getattr(self, f"{name}_err", 0.0), self.sources.get(name)
            items.append(
                f"{name.replace('_', ' ')} {getattr(self, name):.4g}"
                + (f" +- {error:.2g}" if error else "")
                + f" {unit}"
                + (f" ({source})" if source else "")
            )
        return ", ".join(items)

    @classmethod
    def from_header(cls, header):
        """
        Return the detector that a header describes.

        Raises
        ------
        InputError
            If gain or read noise are missing, or the gain is a camera setting.
        """
        return decide_detector(header)

    @classmethod
    def measure(cls, flats, biases, *, saturation=None, sample=SAMPLE):
        """
        Measure gain and read noise from pairs of flats and pairs of biases.

        Photon transfer on pieces of rows: the variance of the difference of two
        flats, the second scaled to the first, against their level; the read noise
        from differences of biases. Neither a drift of the bias level, nor flats of
        different exposure times, nor a flickering lamp count as noise; pixels
        beyond 4.5 sigma are clipped.

        Parameters
        ----------
        flats, biases : sequence of path, `~astropy.nddata.CCDData` or Frame
            Raw [adu], at least two of each, of one filter and one camera setting.
            Their exposure times may differ.
        saturation : float, optional
            Pixels at or above it are left out [adu].
        sample : int, optional
            About how many pixels of each frame are looked at, in rows spread over it.

        Returns
        -------
        Detector
            With ``gain_err`` and ``read_noise_err`` from the scatter of the pieces.

        Raises
        ------
        InputError
            If there are fewer than two of either, shapes differ, or the flats hold
            no more noise than the biases.
        """
        flats, biases = as_frames(flats, "flats"), as_frames(biases, "biases")
        if len(flats) < 2 or len(biases) < 2:
            raise InputError(
                f"gain and read noise cannot be measured from {len(flats)} flat(s) and "
                f"{len(biases)} bias(es): two of each are needed, or give both values"
            )
        values = photon_transfer(flats, biases, saturation=saturation, sample=sample)
        if saturation is not None:
            values["saturation"] = saturation
        text = f"measured from {len(flats)} flats and {len(biases)} biases"
        return cls(**values, sources={"gain": text, "read_noise": text})


@door(flats=a_sequence, biases=a_sequence, darks=a_sequence, lights=a_sequence)
def decide_detector(
    header=None,
    *,
    gain=None,
    read_noise=None,
    saturation=None,
    flats=(),
    biases=(),
    darks=(),
    lights=(),
):
    """
    Decide gain, read noise and saturation: user, then header, then measurement.

    Parameters
    ----------
    header : `~astropy.io.fits.Header`, optional
        Of a raw frame. EGAIN is believed before GAIN; a GAIN that is a camera
        setting is not believed.
    gain : `~astropy.units.Quantity`, optional
        [electron/adu]
    read_noise : `~astropy.units.Quantity`, optional
        [electron]
    saturation : `~astropy.units.Quantity`, optional
        [adu]
    flats, biases : sequence of Frame, optional
        To measure what neither the user nor the header gives; two of each. The read noise needs
        no flats; a lone bias may be a master.
    darks : sequence of Frame, optional
        Of one exposure time, in place of biases where there are less than two of these: their
        dark current is noise as well.
    lights : sequence of Frame, optional
        With the flats, to measure the saturation from, as `measure_saturation` does; where
        nothing else tells it, the gain from the levels of their sky, and with a bias the read
        noise.

    Returns
    -------
    Detector

    Raises
    ------
    InputError
        If a value is not to be had, is zero, negative, text or in a wrong unit.

    Examples
    --------
    >>> from astropy.io import fits
    >>> from astro_narrowband.detector import decide_detector
    >>> header = fits.Header({"EGAIN": 0.6, "GAIN": 120, "RDNOISE": 5.0})
    >>> print(decide_detector(header).describe())
    gain 0.6 electron/adu (header, EGAIN), read noise 5 electron (header, RDNOISE),
    saturation 6.55e+04 adu (full scale of 16 bits)
    """
    values, sources, trouble = {}, {}, None
    for name, value, unit, reader in (
        ("gain", gain, _GAIN_UNIT, keywords.read_gain),
        ("read_noise", read_noise, u.electron, keywords.read_noise),
        ("saturation", saturation, u.adu, keywords.read_saturation),
    ):
        if value is not None:
            values[name], sources[name] = _checked(value, unit, name), "given"
        if value is not None or header is None:
            continue
        try:
            read = reader(header)
        except InputError as error:
            # A camera setting in GAIN is no reason to stop if it can be measured.
            trouble = error
            continue
        if read is not None:
            values[name], sources[name] = float(read[0]), f"header, {read[1]}"
    # ccdproc took an overscan off: levels of raw counts are not those of the pixels any more.
    moved = header is not None and saturation is None and "SUBOSCAN" in header
    errors = {}
    _measure(values, errors, sources, flats, biases, darks, lights)
    for name in ("gain", "read_noise"):
        if name not in values:
            if trouble is not None:
                raise trouble
            what = name.replace("_", " ")
            raise InputError(f"no {what} in the header (EGAIN, GAIN, RDNOISE): {_HOW[name]}")
    if "saturation" not in values or moved:
        level = measure_saturation([*lights, *flats[:2]], gain=values["gain"])
        n_added = max((as_frame(light).n_added for light in lights), default=1)
        values.setdefault("saturation", FULL_SCALE * n_added)
        sources.setdefault("saturation", "full scale of 16 bits")
        if level is not None and level < values["saturation"]:
            values["saturation"] = level
            sources["saturation"] = "measured from full pixels"
    return Detector(**values, **errors, sources=sources)


def _measure(values, errors, sources, flats, biases, darks, lights):
    """Add gain and read noise to what is known, where frames tell them."""

    def take(measured, source):
        for name in ("gain", "read_noise"):
            if name in measured and name not in values:
                values[name], errors[f"{name}_err"] = measured[name], measured[f"{name}_err"]
                sources[name] = source

    unlit, what = (darks, "darks") if len(biases) < 2 <= len(darks) else (biases, "biases")
    if "gain" not in values and len(flats) >= 2 and unlit:
        found = photon_transfer(flats, unlit, saturation=values.get("saturation"))
        take(found, f"measured from {len(flats)} flats and {len(unlit)} {what}")
    if "gain" not in values and len(lights) >= 2:
        take(gain_of_lights(lights), f"measured from the sky of {len(lights)} lights")
    if "gain" in values and "read_noise" not in values:
        if len(unlit) >= 2:
            take(read_noise_of(unlit, values["gain"]), f"measured from {len(unlit)} {what}")
        elif unlit and len(lights) >= 2:
            found = read_noise_of(lights, values["gain"], bias=unlit[0])
            take(found, f"measured from {len(lights)} lights and a master")


def _checked(value, unit, name):
    """A value that the user gave, in ``unit``; adu/electron is told apart by its unit."""
    hint = ""
    if name == "gain" and isinstance(value, u.Quantity) and value.unit == u.adu / u.electron:
        hint = f"its inverse is {1 / value.value:.6g} electron/adu"
    return value_in(value, unit, name, hint=hint)


#: A stated value that is off by more than the first part of itself, and 5 errors, is said to be;
#: by more than the second, and stated by a header, the measured one is taken.
SAID, NOT_BELIEVED = 0.05, 0.10


@door(measured=of_class("Detector"))
def confront_detector(detector, measured):
    """
    Hold stated gain and read noise against what flats and biases show.

    Parameters
    ----------
    detector : Detector
    measured : Detector
        From `Detector.measure`.

    Returns
    -------
    detector : Detector
        With the measured value in place of one that a header has wrong by more than
        10 % and 5 errors; what a user gave stays.
    sentences : list of str
        What is off by more than 5 % and 5 errors, and what was done.

    Examples
    --------
    >>> from astro_narrowband.detector import Detector, confront_detector
    >>> stated = Detector(1.4, 5.0, sources={"gain": "header, EGAIN", "read_noise": "given"})
    >>> camera, said = confront_detector(stated, Detector(1.0, 3.6, gain_err=0.01))
    >>> camera.gain, len(said)
    (1.0, 2)
    """
    values, errors, sources, sentences = {}, {}, dict(detector.sources), []
    gain = detector.gain
    for name, unit in (("gain", "electron/adu"), ("read_noise", "electron")):
        stated, source = getattr(detector, name), sources.get(name, "given")
        shown, error = getattr(measured, name), getattr(measured, f"{name}_err")
        if name == "read_noise":
            # In adu it is measured whatever the gain.
            shown, error = shown * gain / measured.gain, error * gain / measured.gain
        if abs(shown - stated) <= max(SAID * stated, 5 * error):
            continue
        text = (
            f"{name.replace('_', ' ')}: {stated:.4g} {unit} ({source}), but flats and biases show "
            f"{shown:.4g} +- {error:.1g}: "
        )
        if source == "given" or abs(shown - stated) <= NOT_BELIEVED * stated:
            sentences.append(f"{text}fluxes and errors follow it: check it")
            continue
        values[name], errors[f"{name}_err"] = shown, error
        sources[name] = f"measured, as the {source} is wrong"
        gain = shown if name == "gain" else gain
        sentences.append(f"{text}the measured one is used")
    return replace(detector, **values, **errors, sources=sources), sentences
