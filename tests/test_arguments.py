"""Whatever is given for an argument: it serves, or one of our errors says why it cannot."""

import inspect
import tempfile
import warnings
from copy import copy
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.table import QTable, Table
from astropy.wcs import WCS

import astro_narrowband as an
from astro_narrowband import (
    calibration,
    coaddition,
    confront,
    darks,
    detector,
    filters,
    lines,
    masters,
    noise,
    photometry,
    registration,
    resampling,
    simulate,
)
from astro_narrowband.exceptions import NarrowbandError, NarrowbandWarning
from astro_narrowband.night import pipeline

CirclePixelRegion, PixCoord = (
    getattr(pytest.importorskip("regions"), name) for name in ("CirclePixelRegion", "PixCoord")
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
#: Of each sort one, for a quick look.
USUAL = ("-1", "text", "object", "3-d")
PLACES = np.array([
    (20.0, 22.0), (35.5, 24.0), (26.0, 34.0), (42.0, 36.0), (14.0, 12.0), (44.0, 13.0),
    (12.0, 36.0), (29.0, 11.0),
])  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """A name of a file is one of the kinds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield


def picture(unit="electron/s", **cards):
    rng, (y, x) = np.random.default_rng(8), np.mgrid[: SHAPE[0], : SHAPE[1]]
    data = rng.normal(100, 1, SHAPE)
    for k, (a, b) in enumerate(PLACES):
        data += (300 + 50 * k) * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 4)
    ccd = CCDData(data, unit=unit, uncertainty=StdDevUncertainty(np.ones(SHAPE)))
    ccd.header.update({"EXPTIME": 60.0, "MASTERID": "none", "PHOTFLAM": 1e-18, **cards})
    ccd.wcs = WCS(naxis=2)
    ccd.wcs.wcs.ctype, ccd.wcs.wcs.crval = ("RA---TAN", "DEC--TAN"), (10.0, 20.0)
    ccd.wcs.wcs.crpix, ccd.wcs.wcs.cdelt = (28, 24), (-3e-4, 3e-4)
    return ccd


def raw(level, exposure, shape=SHAPE, noise=5):
    data = np.random.default_rng(int(level)).normal(level, noise, shape).round().astype(np.uint16)
    return CCDData(data, unit="adu", meta={"EXPTIME": exposure, "IMAGETYP": "bias"})


@cache
def things():
    """What valid calls are made of: a small field, raw frames, results."""
    image = picture()
    made = {
        "image": image, "line": picture(FILTER="Halpha"), "folder": Path(tempfile.mkdtemp(dir=".")),
        "continuum": picture(FILTER="continuum"), "raw": raw(1100, 60.0),
        "detector": an.Detector(1.0, 5.0), "biases": [raw(1000 + k, 0.0) for k in range(3)],
        "darks": [raw(1010 + k, 60.0) for k in range(3)],
        "flats": [raw(20000 + k, 3.0) for k in range(3)], "stars": an.detect_stars(image),
        "curve": an.FilterCurve.generic("Halpha"), "broad": an.FilterCurve.generic("R"),
    }  # fmt: skip
    made["bias"] = an.master_bias(made["biases"], detector=made["detector"])
    made["dark"] = an.DarkModel.fit(made["darks"], bias=made["bias"], detector=made["detector"])
    made["curves"] = an.growth_curves(image, PLACES, np.arange(1.0, 6), r_in=6, r_out=9)
    made["map"] = an.subtract_continuum(made["line"], made["continuum"], k=0.5, name="Ha")
    made["scale"] = lines.scale_of_area(made["curve"], "Halpha", area=300.0, error=0.1)
    made["fluxes"] = an.calibrate_flux(made["map"], made["scale"])
    made["coadd"] = an.coadd([image, image], flux_scale="none", reject=False)
    made["correction"] = an.aperture_correction(made["curves"], 2.0, 4.0)
    sky = image.wcs.pixel_to_world(*PLACES.T)
    made["catalogue"] = QTable({"ra": sky.ra, "dec": sky.dec, "mag": np.arange(8.0)})
    made["dark"].write("dark.fits")
    image.write("image.fits")
    CirclePixelRegion(PixCoord(9, 9), 3).write("a.reg", format="ds9")
    Path("curve.csv").write_text("nm,t\n650,0.1\n656,0.9\n660,0.1\n")
    raw(1000, 0.0).write("bias.fits")
    made["truth"] = simulated("new", shape=(32, 32), seed=2)
    return made


def simulated(folder, **keywords):
    """A night in an empty folder where that is asked for by ``"new"``."""
    new = isinstance(folder, str) and folder == "new"
    return an.simulate_night(tempfile.mkdtemp(dir=".") if new else folder, **keywords)


def of_stars():
    t, (image, places) = things(), (things()["image"], PLACES[:2])
    annulus = {"r_in": 6.0, "r_out": 9.0, "sky": "clipped_mean", "clip": 3.0}
    pixels = {
        "effective_gain": None, "saturation": None, "mask": None, "noise_correlation": None,
    }  # fmt: skip
    return {
        "align": (an.align, {
            "source": image, "target": image, "method": "centroid", "positions": places,
            "box_size": 9, "search": 4, "tolerance": 2.0, "max_rms": 0.5, "threshold": 5.0,
            "mask": None, "centroid_func": None}),
        "registration.align_group": (registration.align_group, {
            "images": [image, image], "reference": 0, "method": "stars", "times": [1.0, 2.0],
            "labels": ["a", "a"], "tables": None, "borrow": True, "tolerance": 2.0,
            "max_rms": 0.5, "threshold": 5.0, "mask": None, "workers": 1}),
        "registration.choose_reference": (registration.choose_reference, {"tables": [t["stars"]]}),
        "annulus_photometry": (an.annulus_photometry, {
            "image": image, "positions": places, "r": 3.0, **annulus, "recentre": False,
            "budget": False, "read_noise": None, "common": None, **pixels}),
        "aperture_correction": (an.aperture_correction, {
            "curves": t["curves"], "r_from": 2.0, "r_to": 4.0, "use": None, "min_snr": 5.0,
            "clip": 4.0}),
        "ApertureCorrection.at": (t["correction"].at, {"x": PLACES[:, 0], "y": PLACES[:, 1]}),
        "ApertureCorrection.apply": (t["correction"].apply, {
            "flux": np.ones(8), "flux_err": np.ones(8), "x": PLACES[:, 0], "y": PLACES[:, 1]}),
        "detect_stars": (an.detect_stars, {
            "image": image, "threshold": 5.0, "n_brightest": 500, "fwhm": None, "mask": None,
            "saturation": None, "gain": None, "blends": False}),
        "diagnose_background": (an.diagnose_background, {
            "curves": t["curves"], "wing": "moffat", "r_min": None}),
        "growth_curves": (an.growth_curves, {
            "image": image, "positions": places, "radii": [1.0, 2.0, 3.0], **annulus,
            "allow_overlap": False, **pixels}),
        "GrowthCurves.covariance": (t["curves"].covariance, {"sky": True}),
        "GrowthCurves.index_of": (t["curves"].index_of, {"radius": 2.0, "name": "r"}),
        "GrowthCurves.normalized": (t["curves"].normalized, {"radius": 2.0}),
        "GrowthCurves.fraction_at": (t["curves"].fraction_at, {"radius": 2.0}),
        "GrowthCurves.radius_at": (t["curves"].radius_at, {"fraction": 0.5}),
        "GrowthCurves.stacked": (t["curves"].stacked, {
            "radius": 2.0, "use": None, "min_snr": 20.0}),
        "GrowthCurves.plot": (t["curves"].plot, {"ax": None, "star": 0}),
        "make_catalog": (an.make_catalog, {
            "images": {"Halpha": image}, "detect_on": None, "threshold": 5.0, "n_brightest": 100,
            "fwhm": None, "sky": "clipped_mean", "saturation": None, "coverage": None}),
        "optimal_radius": (an.optimal_radius, {"curves": t["curves"], "profile": None}),
        "photometry.decode_flags": (photometry.decode_flags, {"flags": 3}),
        "photometry.plot_aperture": (photometry.plot_aperture, {
            "image": image, "position": places[0], "r": 3.0, "r_in": 6.0, "r_out": 9.0,
            "ax": None}),
        "Alignment": (an.Alignment, {
            "matrix": np.eye(3), "covariance": np.zeros((4, 4)), "rms": 0.0, "n_matched": 3,
            "method": "a", "flip": False, "fraction": 1.0, "log_chance": -9.0}),
        "Alignment.identity": (an.Alignment.identity, {"method": "a"}),
        "Alignment.translation": (an.Alignment.translation, {"dx": 1.0, "dy": 2.0}),
        "Alignment.then": (an.Alignment.identity().then, {"other": an.Alignment.identity()}),
        "Alignment.plot": (an.Alignment.identity().plot, {"ax": None, "shape": (9, 9)}),
        "Alignment.__call__": (an.Alignment.identity(), {"x": 1.0, "y": 2.0}),
        "Alignment.position_error": (an.Alignment.identity().position_error, {"x": 1.0, "y": 2.0}),
        "Alignment.to_header": (an.Alignment.identity().to_header, {"header": {}}),
        "Alignment.from_header": (an.Alignment.from_header, {"header": {}}),
    }  # fmt: skip


def of_masters():
    t = things()
    dark, both = t["dark"], {"exposure": 60.0, "rows": slice(0, 4)}
    limits = {"max_extrapolation": None, "max_temperature_difference": 5.0}
    return {
        "calibrate": (an.calibrate, {
            "ccd": t["raw"], "bias": t["bias"], "dark": None, "flat": None,
            "gain": 1 * u.electron / u.adu, "read_noise": 5 * u.electron, "saturation": 6e4 * u.adu,
            "exposure": 60 * u.s, "detector": None, "cosmic_rays": False, "add_keyword": True,
            "workers": 1, **limits}),
        "calibration.Recipe.make": (calibration.Recipe.make, {
            "detector": t["detector"], "bias": t["bias"], "dark": None, "flat": None, **limits}),
        "calibration.CalibratedFrame": (calibration.CalibratedFrame, {
            "frame": t["raw"], "exposure": 60.0,
            "recipe": calibration.Recipe.make(detector=t["detector"], bias=t["bias"])}),
        "calibration.Recipe": (calibration.Recipe, {
            "detector": t["detector"], "dark": None, "flat": None, "n_mean": 1, "masters": "",
            **limits}),
        "DarkModel.fit": (an.DarkModel.fit, {
            "darks": t["darks"], "bias": t["bias"], "detector": t["detector"], "model": None,
            "shrink": True, "workers": 1}),
        "DarkModel.from_masters": (an.DarkModel.from_masters, {
            "bias": t["bias"], "dark": None, "exposure": None}),
        "DarkModel.at": (dark.at, {"exposure": 60.0, "max_extrapolation": None}),
        "DarkModel.policy": (dark.policy, {"exposure": 60.0, "max_extrapolation": None}),
        "DarkModel.price": (dark.price, {"exposure": 90.0, "noise": 5.0}),
        "DarkModel.check": (dark.check, {
            "exposure": 60.0, "noise": 5.0, "name": "", "what": "frames",
            "max_extrapolation": None}),
        "DarkModel.typical": (dark.typical, {"name": "rate"}),
        "DarkModel.variance_factor": (dark.variance_factor, {"exposure": 60.0}),
        **{f"DarkModel.{name}": (getattr(dark, name), both) for name in (
            "measured_at", "rest_at", "values", "covariance", "variance", "modes")},
        "DarkModel.lines": (dark.lines, {"rows": slice(0, 4)}),
        "DarkModel.mask": (dark.mask, {"rows": slice(0, 4)}),
        "DarkModel.plot": (dark.plot, {"ax": None}),
        "DarkModel.write": (dark.write, {"path": "a.fits", "overwrite": True}),
        "DarkModel.read": (an.DarkModel.read, {"path": "dark.fits"}),
        "darks.same_exposure": (darks.same_exposure, {"first": 1.0, "second": 2.0}),
        "Detector": (an.Detector, {
            "gain": 1.0, "read_noise": 5.0, "saturation": 6e4, "gain_err": 0.0,
            "read_noise_err": 0.0, "sources": {}}),
        "Detector.from_header": (an.Detector.from_header, {"header": {"EGAIN": 1, "RDNOISE": 5}}),
        "Detector.measure": (an.Detector.measure, {
            "flats": [raw(20000 + k, 3.0, (96, 256), 140) for k in range(2)],
            "biases": [raw(1000 + k, 0.0, (96, 256)) for k in range(2)], "saturation": 6e4,
            "sample": 1000}),
        "detector.decide_detector": (detector.decide_detector, {
            "header": {"EGAIN": 1, "RDNOISE": 5}, "gain": 1 * u.electron / u.adu,
            "read_noise": None, "saturation": None, "flats": (), "biases": (), "darks": (),
            "lights": ()}),
        "detector.gain_of_lights": (detector.gain_of_lights, {
            "lights": [raw(1000 + k, 60.0, (96, 256)) for k in range(2)]}),
        "detector.confront_detector": (detector.confront_detector, {
            "detector": t["detector"], "measured": t["detector"]}),
        "detector.measure_saturation": (detector.measure_saturation, {
            "frames": t["flats"], "gain": None}),
        "master_bias": (an.master_bias, {
            "frames": t["biases"], "detector": t["detector"], "n_sigma": 5.0, "workers": 1}),
        "master_flat": (an.master_flat, {
            "frames": t["flats"], "bias": t["bias"], "dark": None, "detector": t["detector"],
            "checks": None, "min_value": 0.05, "n_sigma": 5.0, "max_extrapolation": None,
            "workers": 1}),
        "masters.check_flats": (masters.check_flats, {
            "frames": t["flats"], "bias": t["bias"], "dark": None, "detector": t["detector"],
            "max_extrapolation": None}),
        "noise.SharedNoise.to_header": (noise.SharedNoise("a").to_header, {"header": {}}),
        "noise.SharedNoise.from_header": (noise.SharedNoise.from_header, {"header": {}}),
        "noise.pixel_variance": (noise.pixel_variance, {
            "electrons": np.ones(3), "read_noise": 5.0, "gain": 1.0}),
        "confront.compare_noise": (confront.compare_noise, {
            "data": np.random.default_rng(1).normal(size=(300, 300)), "sigma": np.ones((300, 300)),
            "mask": None, "noise_correlation": 1.0}),
    }  # fmt: skip


def of_sums():
    t = things()
    image = t["image"]
    made = an.InverseVarianceCombiner([image, image])
    return {
        "coadd": (an.coadd, {
            "frames": [image, image], "weights": "background", "flux_scale": "none",
            "sky": "match", "reject": True, "n_sigma": 4.0, "gradient_tolerance": 0.7,
            "max_seeing": 2.0, "min_transparency": 0.3, "masters": None, "stars": None,
            "statistics": None, "executor": None, "workers": 1, "memory": 1e8}),
        "Coadd.plot": (t["coadd"].plot, {"ax": None}),
        "coaddition.measure_frame": (coaddition.measure_frame, {"frame": image, "stars": None}),
        "combine": (an.combine, {
            "img_list": [t["raw"]] * 3, "output_file": None, "method": "average", "weights": None,
            "scale": None, "mem_limit": 1e8, "clip_extrema": True, "nlow": 1, "nhigh": 1,
            "minmax_clip": True, "minmax_clip_min": 0.0, "minmax_clip_max": 1e9,
            "percentile_clip": None, "sigma_clip": True, "sigma_clip_low_thresh": 3,
            "sigma_clip_high_thresh": 3, "sigma_clip_func": "median",
            "sigma_clip_dev_func": "mad_std", "maxiters": 1, "uncertainty": "auto",
            "combine_uncertainty_function": None, "return_count": False, "unit": None,
            "dtype": None, "overwrite_output": False, "executor": None, "workers": 1}),
        "InverseVarianceCombiner": (an.InverseVarianceCombiner, {
            "ccd_iter": [image, image], "dtype": None, "weighting": "background"}),
        "InverseVarianceCombiner.average_combine": (made.average_combine, {
            "scale_func": None, "scale_to": None, "uncertainty_func": None}),
        "InverseVarianceCombiner.median_combine": (made.median_combine, {
            "median_func": None, "scale_to": None, "uncertainty_func": None}),
        "InverseVarianceCombiner.sum_combine": (made.sum_combine, {
            "sum_func": None, "scale_to": None, "uncertainty_func": None}),
        "resample": (an.resample, {
            "image": image, "alignment": (1, 2), "kernel": "lanczos3", "shape": None,
            "target": None}),
        "resampling.ResampledFrame": (resampling.ResampledFrame, {
            "frame": image, "alignment": (1, 2), "kernel": "lanczos3", "shape": None,
            "target": None}),
        "resampling.noise_factor": (resampling.noise_factor, {
            "noise_correlation": 0.6, "area": 9.0, "kernel": "lanczos3"}),
    }  # fmt: skip


def of_lines():
    t = things()
    curve, broad, line_map = t["curve"], t["broad"], t["map"]
    of = {"curve": curve, "line": "Halpha", "velocity": 0.0}
    wavelength = np.linspace(600, 700, 50)
    balmer = an.line_ratio(line_map, line_map)
    return {
        "FilterCurve": (an.FilterCurve, {
            "name": "a", "wavelength": [1.0, 2.0, 3.0], "transmission": [0.1, 0.9, 0.1]}),
        "FilterCurve.from_shape": (an.FilterCurve.from_shape, {
            "centre": 656 * u.nm, "width": 7 * u.nm, "peak": 1.0, "name": "Ha"}),
        "FilterCurve.generic": (an.FilterCurve.generic, {"name": "Halpha"}),
        "FilterCurve.from_file": (an.FilterCurve.from_file, {"path": "curve.csv", "unit": "nm"}),
        "FilterCurve.__call__": (curve, {"wavelength": 656.0}),
        "FilterCurve.in_beam": (curve.in_beam, {"f_ratio": 4.0, "obstruction": 0.3, "index": 2.0}),
        "FilterCurve.shifted": (curve.shifted, {"shift": 1.0}),
        "FilterCurve.response": (curve.response, {"line": "Halpha", "velocity": 0.0}),
        "FilterCurve.checked_response": (curve.checked_response, {
            "line": "Halpha", "velocity": 0.0}),
        "FilterCurve.integral": (curve.integral, {
            "wavelength": np.linspace(500, 800, 50), "density": np.ones(50)}),
        "flux_scale": (an.flux_scale, {
            "rate": [1.0] * 5, "rate_err": [0.1] * 5,
            "reference": [2.0] * 5 * u.Unit("erg / (s cm2)"), "reference_err": 0.0,
            "rate_common": 0.0, "colour": None, "floor": 0.03, "extinction": 0.0,
            "airmass": (1.0, 1.0)}),
        "line_ratio": (an.line_ratio, {"a": line_map, "b": line_map, "min_snr": 3.0}),
        "calibrate_flux": (an.calibrate_flux, {"line_map": line_map, "scale": t["scale"]}),
        "match_catalogue": (an.match_catalogue, {
            "ccd": t["image"], "catalogue": t["catalogue"], "center": None, "scale": None,
            "stars": t["stars"]}),
        "region_fluxes": (an.region_fluxes, {
            "line_map": line_map, "sky": None,
            "regions": [CirclePixelRegion(PixCoord(20, 20), 5)]}),
        "subtract_sky": (an.subtract_sky, {"line_map": line_map, "sky": None}),
        "region_ratios": (an.region_ratios, {
            "a": line_map, "b": line_map, "sky": None, "min_snr": 3.0,
            "regions": [CirclePixelRegion(PixCoord(20, 20), 5)]}),
        "lines.read_regions": (lines.read_regions, {"path": "a.reg"}),
        "lines.Scale.k_of": (lines.Scale(0.5, 0.1).k_of, {"stars": t["stars"]}),
        "lines.Scale.to_header": (lines.Scale(0.5, 0.1).to_header, {"header": {}}),
        "subtract_continuum": (an.subtract_continuum, {
            "line": t["line"], "continuum": t["continuum"], "curves": (curve, broad),
            "name": "Ha", "velocity": 0.0, "k": 0.5, "k_err": 0.0, "fwhm": None, "stars": None,
            "colour": None, "match": True}),
        "LineMap": (partial(an.LineMap, np.ones(SHAPE), unit="adu"), {
            "common": None, "shared": None, "stars": None}),
        "LineMap.scaled": (line_map.scaled, {"factor": 2.0, "unit": "adu", "common": None}),
        "LineMap.convert_unit_to": (line_map.convert_unit_to, {
            "unit": line_map.unit, "equivalencies": ()}),
        "LineMap.multiply": (line_map.multiply, {"operand": 2.0}),
        "LineMap.divide": (line_map.divide, {"operand": 2.0}),
        "lines.correct_blend": (lines.correct_blend, {
            "line_map": line_map, "ratio": 0.4, "curve": curve, "ratio_err": 0.1,
            "line": "Halpha", "blend": "NII", "velocity": 0.0}),
        "lines.extinction": (lines.extinction, {"balmer": balmer, "intrinsic": 2.86}),
        "lines.flux_from_magnitudes": (lines.flux_from_magnitudes, {
            **of, "bands": {600.0: [15.0], 700.0: [15.5]}}),
        "lines.flux_from_spectra": (lines.flux_from_spectra, {
            **of, "wavelength": wavelength * u.nm,
            "density": np.ones(50) * u.Unit("erg / (s cm2 nm)")}),
        "lines.header_scale": (lines.header_scale, {
            "line": t["line"], "continuum": t["continuum"]}),
        "lines.line_in_continuum": (lines.line_in_continuum, {
            "line_curve": curve, "continuum_curve": broad, "line": "Halpha", "velocity": 0.0}),
        "lines.read_catalogue": (lines.read_catalogue, {"table": t["catalogue"]}),
        "lines.read_image": (lines.read_image, {"path": "image.fits", "unit": None}),
        "lines.reference_colours": (lines.reference_colours, {
            "stars": Table({"r": [15.0], "i": [15.1]}), "source": "a",
            "curves": (of["curve"], of["curve"])}),
        "lines.reference_fluxes": (lines.reference_fluxes, {
            "stars": Table({"r": [15.0], "i": [15.1]}), **of, "source": "a"}),
        "lines.restore_lines": (lines.restore_lines, {
            "maps": {"Halpha": line_map}, "parts": {"Halpha": 0.1}}),
        "lines.scale_of_area": (lines.scale_of_area, {**of, "area": 300.0, "error": 0.1}),
        "lines.separate_lines": (lines.separate_lines, {
            "a": line_map, "b": line_map,
            "curves": (curve, an.FilterCurve.from_shape(658.3, 3.0)),
            "lines": ("Halpha", "NII"), "velocity": 0.0}),
        "lines.surface_brightness": (lines.surface_brightness, {
            "line_map": t["fluxes"], "unit": "R", "line": "Halpha"}),
    }  # fmt: skip


def of_nights():
    t = things()
    truth = t["truth"]
    name = str(truth.frames["name"][-1])
    sets = {"dark_exposures": (60.0,), "n_darks": 1, "n_bias": 1, "n_flats": 1,
            "light_exposures": (60.0,), "model": None, "seed": 1}  # fmt: skip
    table = an.FrameTable.from_paths("bias.fits")
    return {
        "canonical_filter": (an.canonical_filter, {"name": "Ha", "spellings": None}),
        "filters.is_known_filter": (filters.is_known_filter, {"name": "Ha", "spellings": None}),
        "filters.filter_key": (filters.filter_key, {"name": "Ha"}),
        "filters.lines_of": (filters.lines_of, {"name": "Ha"}),
        "filters.pixels_of": (filters.pixels_of, {"line": "Halpha"}),
        "citations": (an.citations, {"product": None}),
        "FrameTable.from_paths": (an.FrameTable.from_paths, {
            "paths": "bias.fits", "set_keywords": None, "spellings": None, "max_pixels": None,
            "bayer": None, "saturation": None, "calibration": (), "ignore": (),
            "calibrated": False}),
        "FrameTable.of_kind": (table.of_kind, {"kind": "bias"}),
        "FrameTable.plot": (table.plot, {"ax": None}),
        "FrameTable.write": (table.write, {"path": "t.ecsv", "overwrite": True}),
        "reduce_night": (an.reduce_night, {
            "nights": "no-such-folder", "output": "no-such-output", "settings": None,
            "progress": None}),
        "pipeline.inspection": (pipeline.inspection, {"table": table, "settings": None}),
        "pipeline.Settings": (pipeline.Settings, vars(pipeline.Settings())),
        "simulate_night": (simulated, {
            "folder": "new", "shape": (32, 32), "filters": ("Ha",), "dither": 1.0,
            "rotation": 0.0, "meridian_flip": False, "object_name": "X", "write_gain": True,
            "write_read_noise": True, "write_wcs": False, "spectra": None, **sets}),
        "simulate.simulate_frames": (simulate.simulate_frames, {
            "n_nights": 1, "shape": (16, 16), "sky": 30.0, "stars": None, "shifts": None,
            "transparency": 1.0, "fwhm": None, **sets}),
        "simulate.moffat_fraction": (simulate.moffat_fraction, {
            "radius": 3.0, "fwhm": 2.0, "beta": 3.0}),
        "simulate.read_truth": (simulate.read_truth, {"folder": truth.folder}),
        "simulate.NightModel": (simulate.NightModel, vars(simulate.NightModel())),
        "simulate.SpectralModel": (simulate.SpectralModel, vars(simulate.SpectralModel())),
        **{f"NightTruth.{what}": (getattr(truth, what), {"name": name})
           for what in ("cosmic_mask", "frame", "positions")},
        "NightTruth.line_flux": (truth.line_flux, {"line": "Halpha"}),
        **{f"simulate.SpectralModel.{what}": (getattr(simulate.SpectralModel(), what), given)
           for what, given in {
               "transmission": {"name": "Halpha", "wavelength": 656.0},
               "continuum_rate": {"name": "Halpha", "slope": 0.0},
               "line_rate": {"name": "Halpha", "wavelength": 656.0},
               "sky_factor": {"name": "Halpha"}}.items()},
        "NightTruth.flat": (truth.flat, {"filter_name": "Halpha"}),
        "NightTruth.nebula": (truth.nebula, {"filter_name": "Halpha"}),
        "NightTruth.aperture_fraction": (truth.aperture_fraction, {"radius": 3.0, "fwhm": 2.0}),
    }  # fmt: skip


@cache
def calls():
    """A valid call of each public function: positional arguments by name, too."""
    return of_stars() | of_masters() | of_sums() | of_lines() | of_nights()


def refused(function, arguments):
    """What a call ends with that is none of our errors, or "" where it is well."""
    try:
        function(**arguments)
    except NarrowbandError as error:
        known = isinstance(error, ValueError | TypeError)
        return "" if known and "\n" not in str(error) else repr(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


#: Arguments that are called.
CALLED = ("scale", "sigma_clip_func", "sigma_clip_dev_func", "combine_uncertainty_function",
          "centroid_func", "scale_func", "median_func", "sum_func", "uncertainty_func",
          "noise")  # fmt: skip


def sweep(name, kinds=BAD):
    """All arguments of a function that end with another error than ours."""
    function, valid = calls()[name]
    wrong = []
    for argument in valid:
        for kind in kinds:
            value = (x for x in "ab") if kind == "generator" else copy(BAD[kind])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NarrowbandWarning)
                warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of what is infinite
                error = refused(function, {**valid, argument: value})
            theirs = argument in CALLED and kind in ("class", "function")  # what that raises
            if error and not theirs:
                wrong.append(f"{argument} = {kind}: {error[:150]}")
    return wrong


@cache
def public():
    """Every function, constructor and method that takes arguments and has a public name."""
    found = {}
    for name in an.__all__:
        member = getattr(an, name)
        found[name] = member
        if inspect.isclass(member):
            found |= {
                f"{name}.{key}": getattr(member, key)
                for key, value in vars(member).items()
                if not key.startswith("_") and callable(getattr(member, key))
            }
    return found


#: Results, which functions make and users read; what hands on planes, band after band; and what
#: is refused, whatever it is given.
MADE = {
    "LineMap.add", "LineMap.subtract",
    "Band", "Coadd", "DarkModel", "Frame", "Frame.master_noise", "Frame.nearest",
    "Frame.raw_counts", "Frame.read", "Frame.source_rows", "FrameTable", "GrowthCurves",
}  # fmt: skip


def test_every_public_function_is_looked_at():
    for name, member in public().items():
        arguments = set(inspect.signature(member).parameters) - {"self"}
        if not arguments or name in MADE:
            continue
        assert name in calls()
        assert arguments - set(calls()[name][1]) <= {"ccdkwargs", "keywords", "kwargs", "args"}


def test_signatures_are_those_of_the_functions_behind():
    assert list(inspect.signature(an.combine).parameters)[:3] == [
        "img_list", "output_file", "method",
    ]  # fmt: skip
    assert an.coadd.__module__ == "astro_narrowband.coaddition._coadd"


#: Nights that are none.
NONE = {"reduce_night", "NightTruth.line_flux"}


def test_the_calls_are_valid():
    for name, (function, valid) in calls().items():
        if name not in NONE:
            function(**valid)


def test_usual_kinds_of_bad_arguments():
    wrong = {name: sweep(name, USUAL) for name in calls()}
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.long
@pytest.mark.parametrize("group", [of_stars, of_masters, of_sums, of_lines, of_nights])
def test_arguments_that_are_none(group):
    wrong = {name: sweep(name) for name in group()}
    assert {name: found for name, found in wrong.items() if found} == {}
