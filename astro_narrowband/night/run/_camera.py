"""Gain, read noise and saturation of the camera of a group, and what frames say against them."""

from dataclasses import replace

from astropy import units as u

from astro_narrowband._engine.files import set_card
from astro_narrowband._engine.headers import read_egain, read_gain, read_noise
from astro_narrowband.detector import Detector, confront_detector, decide_detector, gain_of_lights
from astro_narrowband.exceptions import InputError

#: Lights that tell where pixels are full.
FULL_FROM = 3
#: Pixels of a frame that tell whether its gain is far off: they measure it to a percent.
GAIN_CHECK = 1 << 17
#: Cards of masters for nights that do not say it: of their making, so no setting of a frame.
CARDS = {
    "gain": ("DETGAIN", "[electron/adu] gain of the camera"),
    "gain_err": ("DETGAINE", "[electron/adu] its standard error, where it was measured"),
    "read_noise": ("DETNOISE", "[electron] read noise of a pixel"),
}


def note_camera(header, detector):
    """Write into the header of a master what its camera was taken for."""
    for name, (keyword, comment) in CARDS.items():
        set_card(header, keyword, getattr(detector, name), comment)


def decide_for(group, settings):
    """
    Return the `~astro_narrowband.detector.Detector` of a group, and what is to be said of it.

    It is measured on all pixels of a mosaic; where some of them are added, it is that of the sum.
    """
    header = group.first.open_whole().header
    raw = {
        name: [row for row in getattr(group, name) if not row.master]
        for name in ("bias", "darks", "lamps", "flats")
    }
    biases, flats = (
        [row.open_whole() for row in rows] for rows in (raw["bias"], raw["flats"] or raw["lamps"])
    )
    given = {name: getattr(settings, name) for name in ("gain", "read_noise")}
    stated = _stated(group, header)
    detector = decide_detector(
        header,
        **{
            name: _quantity(value if value is not None else stated.get(name), unit)
            for (name, value), unit in zip(
                given.items(), (u.electron / u.adu, u.electron), strict=True
            )
        },
        saturation=_quantity(settings.saturation, u.adu),
        flats=flats,
        biases=biases or _master_without_light(group),
        darks=_shortest(raw["darks"]),
        lights=[row.open_whole() for row in _longest(group.lights)],
    )
    for name in stated.keys() & given.keys():
        if given[name] is None:
            detector.sources[name] = f"header of a master, {CARDS[name][0]}"
    sentences = _words(detector, header)
    if "measured" not in detector.sources["gain"] and min(len(flats), len(biases)) >= 2:
        try:
            measured = Detector.measure(
                flats[:2], biases[:2], saturation=detector.saturation, sample=GAIN_CHECK
            )
        except InputError:
            pass  # frames that cannot tell
        else:
            detector, more = confront_detector(detector, measured)
            sentences += more
    n = group.first.open(group.colour).n_added
    return replace(
        detector,
        gain_err=detector.gain_err or stated.get("gain_err", 0.0),
        read_noise=detector.read_noise * n**0.5,
        read_noise_err=detector.read_noise_err * n**0.5,
        saturation=detector.saturation * n,
    ), sentences


def gain_alone(group, settings):
    """Return the gain of lights without calibration frames, or None, and what is to be said."""
    if settings.gain is not None:
        return settings.gain, []
    frame = group.first.open_whole()
    try:
        card = read_gain(frame.header)
    except InputError:
        card = None  # a setting
    if card or group.calibrated or len(group.lights) < 2:
        return card and card[0], []
    measured = gain_of_lights([row.open_whole() for row in group.lights])
    if not measured:
        return None, []
    return measured["gain"], [
        "gain: no header says it: measured from the noise of the sky: {gain:.3g} +- {gain_err:.1g} "
        "electron/adu: give --gain if you know it".format(**measured)
    ]


def _words(detector, header):
    """Say what was measured although a user may think that the header has it."""
    sentences = []
    if "measured" in detector.sources["saturation"]:
        sentences.append(
            f"pixels are full at {detector.saturation:.0f} adu (SATURATE is not given; full pixels "
            "pile up there): it is taken for the saturation: give --saturation if it is another"
        )
    for read, what in ((read_egain, "gain"), (read_noise, "read_noise")):
        if "measured" in detector.sources[what]:
            try:
                read(header)
            except InputError as error:
                sentences.append(f"{error}: it was measured instead")
    return sentences


def _stated(group, header):
    """Return what masters of this package say of a camera, for what the header does not."""
    stated = {}
    for name, read in (("gain", read_gain), ("read_noise", read_noise)):
        try:
            if read(header) is not None:
                continue
        except InputError:
            pass  # a setting
        for row in group.rows:
            cards = row.open_raw().header if row.master else {}
            if (value := cards.get(CARDS[name][0])) is not None:
                # That of a sum of pixels has the noise of all.
                n = int(str(cards.get("MOSAIC", "1")).split()[-1]) if name == "read_noise" else 1
                stated[name] = float(value) / n**0.5
                if name == "gain":
                    stated["gain_err"] = float(cards.get(CARDS["gain_err"][0], 0.0))
                break
    return stated


def _master_without_light(group):
    """A master that shows what the camera gives without light, or none."""
    rows = [row for row in (*group.bias, *group.darks) if row.master]
    return [row.open_whole() for row in rows if not (row.mosaic or row.model)][:1]


def _shortest(rows):
    """Darks of the shortest exposure time of which there are two."""
    times = [round(row.exposure, 2) for row in rows]
    time = min((time for time in times if times.count(time) > 1), default=None)
    return [row.open_whole() for row in rows if round(row.exposure, 2) == time]


def _longest(rows):
    """Return the lights that tell most of full pixels."""
    return sorted(rows, key=lambda row: -(row.exposure or 0))[:FULL_FROM]


def _quantity(value, unit):
    return None if value is None else value * unit
