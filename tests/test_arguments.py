"""Whatever is given for an argument: it serves, or one of our errors says why it cannot."""

import warnings
from functools import cache

import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.table import QTable, Table

import astro_narrowband as an
from astro_narrowband.exceptions import (
    AlignmentError,
    CalibrationError,
    NarrowbandError,
    NarrowbandWarning,
)

SHAPE = (48, 56)
BAD = {
    "None": None, "true": True, "0": 0, "-1": -1, "1.5": 1.5, "1e400": 10**400, "huge": 1e308,
    "tiny": 1e-308, "nan": np.nan, "inf": -np.inf, "complex": 1j, "text": "no-such", "empty": "",
    "bytes": b"x", "nul": "a\0b", "list": [], "list of None": [None], "numbers": [1, 2, 3],
    "texts": ["a", "b"], "ragged": [[1], [1, 2]], "dict": {}, "keys": {"a": 1}, "set": {1},
    "object": object(), "class": int, "function": len, "array": np.zeros(3), "0-d": np.array(2.0),
    "2-d": np.zeros(SHAPE), "wrong shape": np.zeros((3, 4)), "3-d": np.zeros((2, *SHAPE)),
    "bools": np.zeros(SHAPE, bool), "strings": np.array(["a"]), "objects": np.array([None]),
    "kilometre": 3 * u.km, "dimensionless": 3 * u.one, "adu list": [1, 2] * u.adu,
    "table": Table({"a": [1]}), "no rows": Table(),
    "no pixel": CCDData(np.zeros((0, 0)), unit="adu"),
    "in metre": CCDData(np.ones(SHAPE), unit="m"), "slice": slice(None), "generator": None,
}  # fmt: skip


@cache
def things():
    """What valid calls are made of: a small field, raw frames, results."""
    rng = np.random.default_rng(8)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    places = np.array([(20.0, 22.0), (35.5, 24.0), (26.0, 34.0), (42.0, 36.0), (14.0, 12.0)])

    def image(level=100.0, unit="electron/s", **cards):
        data = rng.normal(level, 1, SHAPE)
        for k, (a, b) in enumerate(places):
            data += (300 + 50 * k) * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 4)
        ccd = CCDData(data, unit=unit, uncertainty=StdDevUncertainty(np.ones(SHAPE)))
        ccd.header.update({"EXPTIME": 60.0, "MASTERID": "none", **cards})
        return ccd

    def raw(level, exposure):
        data = rng.normal(level, 5, SHAPE).round().astype(np.uint16)
        return CCDData(data, unit="adu", meta={"EXPTIME": exposure})

    made = {
        "image": image(), "line": image(FILTER="Halpha"), "continuum": image(FILTER="continuum"),
        "places": places, "raw": raw(1100, 60.0), "detector": an.Detector(1.0, 5.0),
        "biases": [raw(1000, 0.0) for _ in range(3)], "darks": [raw(1010, 60.0) for _ in range(3)],
        "flats": [raw(20000, 3.0) for _ in range(3)],
    }  # fmt: skip
    made["bias"] = an.master_bias(made["biases"], detector=made["detector"])
    made["dark"] = an.DarkModel.fit(made["darks"], bias=made["bias"], detector=made["detector"])
    made["curves"] = an.growth_curves(
        made["image"], places[:2], [1.0, 2.0, 3.0, 4.0, 5.0], r_in=6, r_out=9
    )
    made["map"] = an.subtract_continuum(made["line"], made["continuum"], k=0.5, name="Ha")
    return made


def calls():
    """A valid call of each public function: positional arguments by name, too."""
    t = things()
    image, places, detector = t["image"], t["places"][:2], t["detector"]
    return {
        "align": (an.align, {
            "source": image, "target": image, "method": "stars", "positions": None, "box_size": 25,
            "search": 40, "tolerance": 2.0, "max_rms": 0.5, "threshold": 5.0, "mask": None,
            "centroid_func": None}),
        "annulus_photometry": (an.annulus_photometry, {
            "image": image, "positions": places, "r": 3.0, "r_in": 6.0, "r_out": 9.0,
            "sky": "clipped_mean", "clip": 3.0, "recentre": False, "budget": False,
            "effective_gain": None, "read_noise": None, "common": None, "saturation": None,
            "mask": None, "noise_correlation": None}),
        "aperture_correction": (an.aperture_correction, {
            "curves": t["curves"], "r_from": 2.0, "r_to": 4.0, "use": None, "min_snr": 5.0,
            "clip": 4.0}),
        "calibrate": (an.calibrate, {
            "ccd": t["raw"], "bias": t["bias"], "dark": None, "flat": None,
            "gain": 1 * u.electron / u.adu, "read_noise": 5 * u.electron, "saturation": 6e4 * u.adu,
            "exposure": 60 * u.s, "detector": None, "max_extrapolation": None,
            "max_temperature_difference": 5.0, "cosmic_rays": False, "add_keyword": True,
            "workers": 1}),
        "canonical_filter": (an.canonical_filter, {"name": "Ha", "spellings": None}),
        "citations": (an.citations, {"product": None}),
        "coadd": (an.coadd, {
            "frames": [image, image], "weights": "background", "flux_scale": "none",
            "sky": "match", "reject": True, "n_sigma": 4.0, "gradient_tolerance": 0.7,
            "max_seeing": 2.0, "min_transparency": 0.3, "masters": None, "stars": None,
            "statistics": None, "executor": None, "workers": 1, "memory": 1e8}),
        "combine": (an.combine, {
            "img_list": [t["raw"]] * 3, "output_file": None, "method": "average", "weights": None,
            "scale": None, "mem_limit": 1e8, "clip_extrema": True, "nlow": 1, "nhigh": 1,
            "minmax_clip": True, "minmax_clip_min": 0.0, "minmax_clip_max": 1e9,
            "percentile_clip": None, "sigma_clip": True, "sigma_clip_low_thresh": 3,
            "sigma_clip_high_thresh": 3, "sigma_clip_func": "median",
            "sigma_clip_dev_func": "mad_std", "maxiters": 1, "uncertainty": "auto",
            "combine_uncertainty_function": None, "return_count": False, "unit": None,
            "dtype": None, "overwrite_output": False, "executor": None, "workers": 1}),
        "DarkModel.fit": (an.DarkModel.fit, {
            "darks": t["darks"], "bias": t["bias"], "detector": detector, "model": None,
            "shrink": True, "workers": 1}),
        "DarkModel.from_masters": (an.DarkModel.from_masters, {
            "bias": t["bias"], "dark": None, "exposure": None}),
        "DarkModel.at": (t["dark"].at, {"exposure": 60.0, "max_extrapolation": None}),
        "DarkModel.read": (an.DarkModel.read, {"path": "no.fits"}),
        "Detector": (an.Detector, {
            "gain": 1.0, "read_noise": 5.0, "saturation": 6e4, "gain_err": 0.0,
            "read_noise_err": 0.0}),
        "Detector.from_header": (an.Detector.from_header, {"header": {"EGAIN": 1, "RDNOISE": 5}}),
        "Detector.measure": (an.Detector.measure, {
            "flats": t["flats"], "biases": t["biases"], "saturation": 6e4, "sample": 1000}),
        "detect_stars": (an.detect_stars, {
            "image": image, "threshold": 5.0, "n_brightest": 500, "fwhm": None, "mask": None,
            "saturation": None, "gain": None, "blends": False}),
        "diagnose_background": (an.diagnose_background, {
            "curves": t["curves"], "wing": "moffat", "r_min": None}),
        "FilterCurve.from_shape": (an.FilterCurve.from_shape, {
            "centre": 656 * u.nm, "width": 7 * u.nm, "peak": 1.0, "name": "Ha"}),
        "FilterCurve.generic": (an.FilterCurve.generic, {"name": "Halpha"}),
        "FilterCurve.from_file": (an.FilterCurve.from_file, {"path": "no.csv", "unit": None}),
        "FrameTable.from_paths": (an.FrameTable.from_paths, {
            "paths": "no-such-folder", "set_keywords": None, "max_pixels": None, "bayer": None,
            "saturation": None, "calibration": (), "ignore": ()}),
        "flux_scale": (an.flux_scale, {
            "rate": [1.0] * 5, "rate_err": [0.1] * 5,
            "reference": [2.0] * 5 * u.Unit("erg / (s cm2)"),
            "reference_err": 0.0, "colour": None, "floor": 0.03, "extinction": 0.0,
            "airmass": (1.0, 1.0)}),
        "growth_curves": (an.growth_curves, {
            "image": image, "positions": places, "radii": [1.0, 2.0, 3.0], "r_in": 6.0,
            "r_out": 9.0, "sky": "clipped_mean", "clip": 3.0, "allow_overlap": False,
            "effective_gain": None, "saturation": None, "mask": None,
            "noise_correlation": None}),
        "InverseVarianceCombiner": (an.InverseVarianceCombiner, {
            "ccd_iter": [image, image], "dtype": None, "weighting": "background"}),
        "line_ratio": (an.line_ratio, {"a": t["map"], "b": t["map"], "min_snr": 3.0}),
        "calibrate_flux": (an.calibrate_flux, {"line_map": t["map"], "scale": None}),
        "make_catalog": (an.make_catalog, {
            "images": {"Halpha": image}, "detect_on": None, "threshold": 5.0, "n_brightest": 100,
            "fwhm": None, "sky": "clipped_mean", "saturation": None, "coverage": None}),
        "master_bias": (an.master_bias, {
            "frames": t["biases"], "detector": detector, "n_sigma": 5.0, "workers": 1}),
        "master_flat": (an.master_flat, {
            "frames": t["flats"], "bias": t["bias"], "dark": None, "detector": detector,
            "checks": None, "min_value": 0.05, "n_sigma": 5.0, "max_extrapolation": None,
            "workers": 1}),
        "match_catalogue": (an.match_catalogue, {
            "ccd": image, "catalogue": QTable({"ra": [1.0], "dec": [2.0], "mag": [3.0]}),
            "center": None, "scale": None, "stars": None}),
        "optimal_radius": (an.optimal_radius, {"curves": t["curves"], "profile": None}),
        "reduce_night": (an.reduce_night, {
            "nights": "no-such-folder", "output": "no-such-output", "settings": None,
            "progress": None}),
        "region_fluxes": (an.region_fluxes, {"line_map": t["map"], "regions": None, "sky": None}),
        "resample": (an.resample, {
            "image": image, "alignment": (1, 2), "kernel": "lanczos3", "shape": None,
            "target": None}),
        "simulate_night": (an.simulate_night, {
            "folder": "/dev/null/x", "shape": SHAPE, "filters": ("Ha",), "n_bias": 1,
            "dark_exposures": (60.0,), "n_darks": 1, "n_flats": 1, "light_exposures": (60.0,),
            "dither": 1.0, "rotation": 0.0, "object_name": "X", "model": None, "spectra": None,
            "seed": 1}),
        "subtract_continuum": (an.subtract_continuum, {
            "line": t["line"], "continuum": t["continuum"], "curves": None, "name": "Ha",
            "velocity": 0.0, "k": 0.5, "k_err": 0.0, "stars": None, "colour": None,
            "match": True}),
        "Alignment": (an.Alignment, {
            "matrix": np.eye(3), "covariance": np.zeros((4, 4)), "rms": 0.0, "n_matched": 3}),
        "Alignment.translation": (an.Alignment.translation, {"dx": 1.0, "dy": 2.0}),
        "Alignment.from_header": (an.Alignment.from_header, {"header": {}}),
    }  # fmt: skip


def refused(function, arguments):
    """What a call ends with that is none of our errors, or "" where it is well."""
    try:
        function(**arguments)
    except NarrowbandError as error:
        known = (ValueError, TypeError, OSError, AlignmentError, CalibrationError)
        return "" if isinstance(error, known) and "\n" not in str(error) else repr(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


#: Arguments that are called.
CALLED = ("scale", "sigma_clip_func", "sigma_clip_dev_func", "combine_uncertainty_function")


def sweep(name):
    """All arguments of a function that end with another error than ours."""
    function, valid = calls()[name]
    wrong = []
    for argument in valid:
        for kind, value in BAD.items():
            value = (x for x in "ab") if kind == "generator" else value
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NarrowbandWarning)
                error = refused(function, {**valid, argument: value})
            theirs = argument in CALLED and kind in ("class", "function")  # what that raises
            if error and not theirs:
                wrong.append(f"{argument} = {kind}: {error[:150]}")
    return wrong


#: Those whose arguments are all looked at before they start.
CALLS = ("calibrate", "combine", "canonical_filter", "reduce_night")


@pytest.mark.long
@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_are_none(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a name of a file is one of the kinds
    assert sweep(name) == []
