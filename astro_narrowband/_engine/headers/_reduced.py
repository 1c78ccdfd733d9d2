"""Whether a frame is raw, or what a program did to it."""

import re

from astro_narrowband._engine.headers.spellings import (
    COUNTS,
    OFF,
    REDUCED,
    key_of,
    parse_number,
    raw_values,
)
from astro_narrowband._engine.text import clean_text, show_value


def reduced_by(header):
    """
    Return why a frame is not raw, such as ``"BIASSUB = True"``, or ``""`` if it is.

    Flags of calibration, counts of combined frames and units that are not those
    of a detector (BUNIT electron) are looked at; history is not.
    """
    for keyword in REDUCED:
        for value, _ in raw_values(header, keyword):
            text = clean_text("" if value is None else value)
            words = re.findall(r"[a-z0-9]+", text.lower())
            if keyword == "CALSTAT":
                applied = re.fullmatch("[BDFMCSPT]*[BDF][BDFMCSPT]*", text.upper()) is not None
            elif isinstance(value, bool):
                applied = value
            else:
                applied = bool(words) and words[0] not in OFF
            if applied:
                return f"{keyword} = {show_value(value)}"
    for keyword in COUNTS:
        for value, _ in raw_values(header, keyword):
            try:
                if parse_number(value) > 1:
                    return f"{keyword} = {show_value(value)}"
            except ValueError:
                continue
    for value, _ in raw_values(header, "BUNIT"):
        unit = key_of("" if value is None else value)
        physical = "elec|photoelec|photon|jy|mjy|erg|nmgy|nanomagg|flux|(es?|normalized)$"
        if re.match(physical + "|dimensionless$", unit):
            return f"BUNIT = {show_value(value)}"
        if re.match(r"(adu|dn|counts?)(s|sec|second)?(s|sec|second|persec|persecond)$", unit) and (
            unit not in {"adus", "dns", "counts"} or "/" in str(value)
        ):
            return f"BUNIT = {show_value(value)}"
    return ""
