"""
A coadd's error bars against its own blank sky.

Private to `astro_narrowband.coaddition`.
"""

from astro_narrowband.confront import compare_noise
from astro_narrowband.exceptions import warn

#: Where the ratios stand in a header, and of what they are.
KEYWORDS = {
    "pixels": ("NOISEPIX", "noise of pixels, measured over predicted"),
    "blocks": ("NOISEBLK", "noise of 8 x 8 pixels, likewise"),
    "apertures": ("NOISEAPR", "noise of 12 x 12 pixels, likewise"),
    "lines": ("NOISELIN", "noise of rows or columns, likewise"),
}


def self_test(ccd):
    """
    Compare a coadd's noise with its uncertainty, and scale that where it does not hold.

    Writes NOISEPIX, NOISEBLK, NOISEAPR, NOISELIN, where blank sky tells them, and ERRSCALE;
    what the uncertainty was multiplied by. Warns where the two disagree.
    """
    header = ccd.header
    test = compare_noise(
        ccd.data, ccd.uncertainty.array, ccd.mask, noise_correlation=header["NOISECOR"]
    )
    for name, (ratio, _) in test.ratios.items():
        keyword, comment = KEYWORDS[name]
        header[keyword] = (round(ratio, 3), comment)
    header["ERRSCALE"] = (round(test.factor, 4), "errors were multiplied by this")
    if test.failures:
        ccd.uncertainty.array *= test.factor
        header["NOISECOR"] = round(header["NOISECOR"] * test.correlation, 6)
        warn(
            f"{header.get('COADDREF', 'coadd')}, of its coadd: {test.sentence}",
            stacklevel=3,
        )
