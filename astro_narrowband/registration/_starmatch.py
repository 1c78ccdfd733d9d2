"""
Two star lists: hypotheses, refinement, and the tests that an answer must stand.

Private to `astro_narrowband.registration`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from astropy.table import Table

from astro_narrowband._engine.detection import detect_stars
from astro_narrowband._engine.validate import bare
from astro_narrowband.exceptions import AlignmentError, InputError
from astro_narrowband.registration import match as _match
from astro_narrowband.registration._alignment import Alignment

#: A rotation or scale that moves no corner by more than this is not worth resampling for [pix].
NEGLIGIBLE = 0.02
#: A turn or scale is taken where chi2 falls by so much.
SIGNIFICANT_TURN = 12.0
#: Largest departure of the scale from 1, beyond so many of its own errors: same camera, same
#: telescope. In a small field few stars know the scale to no better than that.
MAX_SCALE, SCALE_ERRORS = 1e-3, 4.0
#: Neighbours of a peak that are higher than this part of it are those of a star, not of a hot
#: pixel (0.64 for a FWHM of 3 pixels, 0.91 for 6).
STAR_RING = 0.6
#: log10 of the chance that is accepted for a match of unrelated lists.
MAX_CHANCE = -6.0
#: No match counts as closer than this [pix].
CLOSEST = 0.2
#: Smallest part of the stars in the common area that must match, unless the chance is far
#: smaller still: knots of nebula and noise on it may outnumber the stars.
MIN_FRACTION = 0.25
OVERWHELMING = -25.0
#: Largest standard error of the transform in a corner, rotation and scale left free [pix].
MAX_CORNER = 0.3
#: Offsets are voted for by so many of the brightest stars.
VOTERS = 80
#: As many of them must match before lists that go on are not looked through further down: the
#: brightest stars of a long exposure are those that just do not saturate.
ENOUGH = 12
#: Where so many of them match without a rotation, none is tried: no sky looks the same turned.
CERTAIN = 30
#: How far down the lists the voters of one frame and of the other are taken.
DEPTHS = ((0, 0), (60, 0), (0, 60), (120, 0), (0, 120), (200, 0), (0, 200), (300, 0), (0, 300))


def name_of(image):
    if isinstance(image, Table):
        return str(image.meta.get("name", "star list"))
    return str(getattr(image, "name", None) or getattr(image, "meta", {}).get("name", "frame"))


@dataclass(frozen=True, eq=False)
class Stars:
    """What matching needs of a star list."""

    name: str
    shape: tuple[int, int]
    xy: np.ndarray
    variance: np.ndarray
    ring: np.ndarray
    n_found: int
    n_saturated: int
    meta: dict

    @property
    def found(self):
        text = f"{self.n_found} star{'s' * (self.n_found != 1)}"
        if self.n_saturated:
            text += f" ({self.n_saturated} of them saturated)"
        rejected = self.meta.get("n_rejected") or {}
        if rejected:
            parts = ", ".join(f"{n} {reason}" for reason, n in rejected.items())
            text += f", not counting {parts}"
        return text


def stars_of(image, keywords):
    table = image if isinstance(image, Table) else detect_stars(image, **keywords)
    for column in ("x_center", "y_center"):
        if column not in table.colnames:
            raise InputError(f"{name_of(table)}: the star list has no column {column}")
    if "shape" not in table.meta:
        raise InputError(
            f"{name_of(table)}: the star list has no meta['shape'] (ny, nx): use detect_stars"
        )
    xy = np.column_stack([bare(table["x_center"]), bare(table["y_center"])])
    if "x_err" in table.colnames:
        variance = (bare(table["x_err"]) ** 2 + bare(table["y_err"]) ** 2) / 2
    else:
        variance = np.full(len(table), 0.05**2)
    ring = bare(table["sharpness"]) if "sharpness" in table.colnames else np.ones(len(table))
    saturated = np.zeros(len(table), bool)
    if "saturated" in table.colnames:
        saturated = np.asarray(table["saturated"], bool)
    good = ~saturated & np.isfinite(xy).all(axis=1) & np.isfinite(variance)
    # Pixel response and undersampling set a floor that the photons do not.
    return Stars(
        name_of(table), tuple(table.meta["shape"]), xy[good], variance[good] + 0.003**2,
        ring[good], len(table), int(saturated.sum()), dict(table.meta),
    )  # fmt: skip


@dataclass(eq=False)
class _Solution:
    """One hypothesis after refinement."""

    matrix: np.ndarray
    covariance: np.ndarray
    i: np.ndarray
    j: np.ndarray
    rms: float
    model: str
    radius: float
    log_chance: float
    fraction: float
    turned: bool
    corner: float

    @property
    def n(self):
        return len(self.i)


def _corners(shape):
    ny, nx = shape
    return np.array([[0, 0], [nx - 1, 0], [0, ny - 1], [nx - 1, ny - 1]], float)


def _quick(source, target, matrix, radius):
    """Refine a hypothesis on bright stars: its matrix and number of matches."""
    n, pairs = 0, None
    for _ in range(6):
        i, j = _match.mutual_matches(_match.apply(matrix, source.xy), target.xy, radius)
        if len(i) < 2 or _same_pairs(pairs, (i, j)):
            return matrix, len(i)
        pairs = i, j
        variance = source.variance[i] + target.variance[j] + 0.1**2
        angle = math.atan2(matrix[1, 0], matrix[0, 0])
        model = "similarity" if len(i) >= 4 else "translation"
        new, *_ = _match.fit(source.xy[i], target.xy[j], variance, model=model, angle=angle)
        # A handful of chance matches may ask for any rotation and scale.
        if abs(math.sqrt(abs(np.linalg.det(new[:2, :2]))) - 1) > 0.01:
            new, *_ = _match.fit(
                source.xy[i], target.xy[j], variance, model="translation", angle=angle
            )
        matrix = new
        if len(i) == n:
            break
        n = len(i)
    return matrix, len(i)


def _same_pairs(before, now):
    """Whether the same stars match as before, so that a fit would say the same again."""
    return before is not None and all(map(np.array_equal, before, now))


def _voters(stars, first):
    chunk = slice(first, first + VOTERS)
    planes = {name: getattr(stars, name)[chunk] for name in ("xy", "variance", "ring")}
    return replace(stars, **planes)


def _hypotheses(source, target, tolerance):
    """Matrices worth refining, the better first: (matrix, n, turned), each a different answer."""
    voters = [[_voters(s, d) for s, d in zip((source, target), depths, strict=True)]
              for depths in DEPTHS]  # fmt: skip
    voters = [(a, b) for a, b in voters if len(a.xy) and len(b.xy)]
    usual = [(0.0, 4, False), (math.pi, 4, False)]
    for a, b in voters:
        hypotheses = _hypotheses_of(a, b, tolerance, usual)
        if hypotheses and hypotheses[0][1] >= CERTAIN:
            return hypotheses
    first = None
    for a, b in voters:
        odd = [(angle, 2, True) for angle, _, _ in _match.rotations(a.xy, b.xy, tolerance)]
        hypotheses = _hypotheses_of(a, b, tolerance, usual + odd)
        if hypotheses and hypotheses[0][1] >= ENOUGH:
            return hypotheses
        first = hypotheses if first is None else first
    return first


def _hypotheses_of(a, b, tolerance, angles):
    center = (np.array(a.shape[::-1]) - 1) / 2
    tried = []
    for angle, n_best, turned in angles:
        turn = _match.rotation_about(center, angle)
        for offset, _ in _match.vote(_match.apply(turn, a.xy), b.xy, tolerance, n_best=n_best):
            start = turn.copy()
            start[:2, 2] += offset
            matrix, n = _quick(a, b, start, 1.5 * tolerance)
            tried.append((matrix, n, turned))
    tried.sort(key=lambda item: -item[1])
    return distinct(tried, [matrix for matrix, _, _ in tried], a.shape)


def distinct(items, matrices, shape):
    """The items of whose matrices none before does nearly the same to a frame."""
    corners = _corners(shape)
    points = np.vstack([corners, corners.mean(axis=0)])
    kept, places = [], []
    for item, matrix in zip(items, matrices, strict=True):
        place = _match.apply(matrix, points)
        if places:
            apart = np.abs(np.array(places) - place).max(axis=2)
            same = (apart[:, 4] < 8) & (apart[:, :4].max(axis=1) < 0.05 * max(shape))
            if same.any():
                continue
        kept.append(item)
        places.append(place)
    return kept


def refine(source, target, matrix, turned, tolerance, *, significant=SIGNIFICANT_TURN):
    """Match all stars under a hypothesis and fit: a _Solution, or None."""
    radius = 1.5 * tolerance
    last = i = j = None
    for _ in range(12):
        before = (i, j)
        i, j = _match.mutual_matches(_match.apply(matrix, source.xy), target.xy, radius)
        if len(i) < 2:
            return None
        if last is not None and _same_pairs(before, (i, j)):
            break
        variance = source.variance[i] + target.variance[j]
        angle = math.atan2(matrix[1, 0], matrix[0, 0])
        model = "similarity" if len(i) >= 4 else "translation"
        fitted = _match.fit_few(source.xy[i], target.xy[j], variance, model=model, angle=angle)
        matrix, _, used, excess, _ = fitted
        scatter = math.sqrt(float(np.median(variance)) + excess)
        radius = min(max(1.0, 5 * scatter), 1.5 * tolerance)
        state = (len(i), int(used.sum()), round(radius, 3))
        if state == last:
            break
        last = state
    pairs = i, j, variance
    return _select_model(source, target, pairs, fitted, model, turned, radius, significant)


def _select_model(source, target, pairs, fitted, model, turned, radius, significant):
    """Take the plain shift (or half turn) where it does as well as the similarity."""
    i, j, variance = pairs
    matrix, covariance, used, excess, chi2 = fitted
    open_turn = 0.0
    if model == "similarity":
        angle = math.atan2(matrix[1, 0], matrix[0, 0])
        half = math.pi if abs(angle) > math.pi / 2 else 0.0
        plain = _match.fit(
            source.xy[i][used], target.xy[j][used], variance[used] + excess,
            model="translation", angle=half, clip=1e6,
        )  # fmt: skip
        residual = target.xy[j][used] - _match.apply(plain[0], source.xy[i][used])
        chi2_plain = float(((residual**2).sum(axis=1) / (variance[used] + excess)).sum())
        corners = _corners(source.shape)
        moved = np.abs(_match.apply(plain[0], corners) - _match.apply(matrix, corners)).max()
        unit = max(1.0, chi2 / max(2 * int(used.sum()) - 4, 1))
        if chi2_plain - chi2 < significant * unit or moved < NEGLIGIBLE:
            model, matrix, covariance = "translation", plain[0], plain[1]
            turned = False
            # The rotation is not significant; what it would do all the same must be small.
            open_turn = moved / 2
    i, j = i[used], j[used]
    corner = max(_corner_error(source, target, (i, j), variance[used] + excess), open_turn)
    residual = target.xy[j] - _match.apply(matrix, source.xy[i])
    rms = float(np.sqrt((residual**2).mean()))
    away = np.hypot(*residual.T)
    log_chance, fraction = _significance(source, target, matrix, away, radius, model, turned)
    return _Solution(
        matrix, covariance, i, j, rms, model, radius, log_chance, fraction, turned, corner
    )  # fmt: skip


def _corner_error(source, target, pairs, variance):
    """
    Error in the worst corner if the frames may be turned.

    A few stars close together fit a shift well and say nothing about a
    rotation: what they would allow is the error of the shift, too.
    """
    i, j = pairs
    if len(i) < 3:
        return math.inf
    matrix, covariance, *_ = _match.fit(
        source.xy[i], target.xy[j], variance, model="similarity", clip=1e6
    )
    corners = _corners(source.shape)
    return float(Alignment(matrix, covariance).position_error(*corners.T).max())


def within(xy, shape):
    """Whether positions lie within a frame."""
    ny, nx = shape
    return (xy[:, 0] > 0) & (xy[:, 0] < nx - 1) & (xy[:, 1] > 0) & (xy[:, 1] < ny - 1)


def _significance(source, target, matrix, away, radius, model, turned):
    """
    log10 of the chance of such a match between unrelated lists, and the part matched.

    Pairs were looked for within ``radius``; where they are ``away`` by far less, that
    they lie so close counts, at the price of a radius that was chosen afterwards.
    """
    n = len(away)
    n_source = int(within(_match.apply(matrix, source.xy), target.shape).sum())
    n_target = int(within(_match.apply(np.linalg.inv(matrix), target.xy), source.shape).sum())
    n_source, n_target = max(n_source, n), max(n_target, n)
    grid = np.stack(np.meshgrid(*(np.linspace(0, s - 1, 33) for s in source.shape[::-1])), -1)
    common = within(_match.apply(matrix, grid.reshape(-1, 2)), target.shape).mean()
    area = max(common, 1e-3) * target.shape[0] * target.shape[1]
    fewer, more = sorted((n_source, n_target))
    depths = sum(a < len(source.xy) and b < len(target.xy) for a, b in DEPTHS)
    voters = depths * min(len(source.xy), VOTERS) * min(len(target.xy), VOTERS)
    if model == "translation" and not turned:
        free, hypotheses = 1, 2.0 * voters
    else:
        pairs = (min(len(source.xy), 40) * min(len(target.xy), 40)) ** 2 / 2
        near = 6 * radius / math.sqrt(area)
        free, hypotheses = 2, 2.0 * voters + pairs * near
    # A fit draws its own pairs nearer than others would be.
    close = min(max(CLOSEST, 2.0 * float(away.max())), radius)
    # The lists are one sample: a star matched twice over is not possible.
    log_chance = min(
        _match.chance(n, fewer, min(more * math.pi * r**2 / area, 0.9), free=free,
                      hypotheses=hypotheses * choices)
        for r, choices in ((radius, 1.0), (close, 1.0 + 2.0 * math.log2(radius / close)))
    )  # fmt: skip
    return log_chance, n / fewer


def frozen(source, target, solution):
    """Whether the matched sources stand on the same pixels: the sky may, the detector does."""
    corners = _corners(source.shape)
    if np.abs(_match.apply(solution.matrix, corners) - corners).max() > 1.0:
        return False
    i, j = solution.i, solution.j
    shift = np.median(target.xy[j] - source.xy[i], axis=0)
    error = 1.0 / math.sqrt((1 / (source.variance[i] + target.variance[j])).sum())
    return bool(np.hypot(*shift) < max(6 * error, 0.1))


def _pixels(target, solution):
    """Why frozen sources are taken for hot pixels, or an empty text."""
    j = solution.j
    ring = float(np.median(target.ring[j]))
    if ring > STAR_RING:
        return ""
    # Stars fall anywhere on a pixel, hot pixels on its centre: n |mean phase|^2 is chi2 / 2.
    phase = np.abs(np.exp(2j * math.pi * target.xy[j]).mean(axis=0))
    if (solution.n * phase**2 > 5).all() or (phase > 0.85).all():
        return f"sit on the centres of pixels (phase coherence {phase[0]:.2f}, {phase[1]:.2f})"
    if solution.n < 8 and ring < 0.25:
        return f"are hardly wider than a pixel (neighbours at {ring:.2f} of the peak)"
    return ""


def _choose(label, source, target, solutions, max_rms, min_stars):
    """
    Return the first solution that stands every test, or raise for the best one.

    What moved is sky; what stayed may be the detector. So a frozen solution is
    taken only where no other one stands.
    """
    still = [s for s in solutions if frozen(source, target, s)]
    moving = [s for s in solutions if all(s is not f for f in still)]
    first_error = None
    for group in (moving, still):
        for solution in group[:1]:
            rivals = [s for s in group if s is not solution]
            try:
                _judge(label, source, target, solution, rivals, max_rms, min_stars)
                if group is still:
                    why = _pixels(target, solution)
                    if why:
                        raise AlignmentError(
                            f"these are hot pixels: {label}: {solution.n} sources match that did "
                            f"not move and {why}: calibrate the frames or give a mask of hot pixels"
                        )
            except AlignmentError as error:
                if first_error is None or solution is solutions[0]:
                    first_error = error
            else:
                return solution
    raise first_error


def match_stars(source, target, *, tolerance, max_rms, starts=None, method="stars", min_stars=3):
    """Align two Stars, or raise AlignmentError."""
    label = f"{source.name} -> {target.name}"
    if source.shape != target.shape:
        raise AlignmentError(
            f"the frames' shapes differ: {label}: {source.shape} and {target.shape}: "
            "frames of one camera, binning and window can be aligned"
        )
    for stars in (source, target):
        if len(stars.xy) < min_stars:
            raise AlignmentError(
                f"too few stars: {label}: {stars.name} has {stars.found}: {min_stars} unsaturated "
                "stars are needed"
            )
    if starts is None:
        starts = _hypotheses(source, target, tolerance)
    best = _best(label, source, target, starts, tolerance, max_rms, min_stars)
    angle = math.degrees(math.atan2(best.matrix[1, 0], best.matrix[0, 0]))
    return Alignment(
        best.matrix, best.covariance, best.rms, best.n, method,
        abs(angle) > 150, best.fraction, best.log_chance,
    )  # fmt: skip


def _best(label, source, target, starts, tolerance, max_rms, min_stars):
    """Refine hypotheses and return the solution that stands every test, or raise."""
    solutions = [refine(source, target, m, turned, tolerance) for m, _, turned in starts[:6]]
    solutions = [s for s in solutions if s is not None]
    solutions = distinct(solutions, [s.matrix for s in solutions], source.shape)
    solutions.sort(key=lambda s: (s.log_chance, -s.n))
    if not solutions:
        raise AlignmentError(f"no two stars match: {label}: {source.found}; {target.found}")
    return _choose(label, source, target, solutions, max_rms, min_stars)


def _judge(label, source, target, best, rivals, max_rms, min_stars):
    """Raise AlignmentError unless the solution stands every test."""
    runner_up = max((s.n for s in rivals), default=0)
    facts = (
        f"{best.n} of {source.n_found} and {target.n_found} stars match, "
        f"{best.fraction:.0%} of those in common, rms {best.rms:.2f} pix, "
        f"runner-up {runner_up}, chance 1e{best.log_chance:.0f}"
    )

    def refuse(cause, limit, *, odd=False):
        clue = _diagnose(source, target) if odd else ""
        raise AlignmentError(f"{cause}: {label}: {limit} ({facts}){clue}")

    needed = min_stars if best.model == "translation" and not best.turned else min_stars + 1
    if best.n < needed:
        refuse("too few stars match", f"{needed} are needed", odd=True)
    if best.log_chance > MAX_CHANCE:
        refuse("the match may be chance", f"at most 1e{MAX_CHANCE:.0f} is accepted", odd=True)
    if best.fraction < MIN_FRACTION and best.log_chance > OVERWHELMING:
        refuse("too few stars match", f"{MIN_FRACTION:.0%} are needed", odd=True)
    # Chance matches always turn up, and any pair of stars is its own partner after a half turn:
    # a rival counts from three stars on, where it is not chance.
    if any(2 * s.n > best.n and s.n > 2 and s.log_chance < MAX_CHANCE / 2 for s in rivals):
        refuse("two transforms match", "the other one matches more than half as many stars")
    # Wide or trailed stars are measured less well, in proportion.
    widths = [stars.meta.get("fwhm", 0.0) for stars in (source, target)]
    most = max(max_rms, *(0.075 * w for w in widths if math.isfinite(w)), 0.0)
    if best.rms > most:
        refuse("the stars do not fit", f"residuals of {most:.2g} pix are accepted", odd=True)
    scale, scale_err = scale_of(best.matrix, best.covariance)
    if abs(scale - 1) > MAX_SCALE + SCALE_ERRORS * scale_err:
        refuse("the pixel scales differ", f"by a factor {scale:.4f} +- {scale_err:.4f}")
    if best.corner > MAX_CORNER:
        refuse("the corners are uncertain", f"by {best.corner:.2f} pix, {MAX_CORNER:g} is accepted")
    if np.ptp(target.xy[best.j], axis=0).min() < 8:
        refuse("the stars lie in line", "all on less than 8 rows or columns of pixels")


def scale_of(matrix, covariance):
    """Scale of a similarity and its standard error."""
    a, b = matrix[0, 0], matrix[1, 0]
    scale = math.hypot(a, b)
    gradient = np.array([a, b]) / scale
    return scale, math.sqrt(max(float(gradient @ covariance[:2, :2] @ gradient), 0.0))


def _diagnose(source, target):
    """What else is the matter, for the message: a mirrored frame, another pixel scale."""
    mirrored = source.xy * (-1, 1) + (source.shape[1] - 1, 0)
    for xy, scale_free, text in (
        (mirrored, False, "; the frame is mirrored: flip one axis of it"),
        (source.xy, True, "; the frames have different pixel scales, by a factor {:.3f}"),
    ):
        n_stars = min(len(xy), len(target.xy))
        probability = len(target.xy) * math.pi * 6.0**2 / math.prod(source.shape)
        votes = _match.rotations(xy, target.xy, 2.0, n_stars=25, scale_free=scale_free)
        for angle, scale, _ in votes[:4]:
            center = (np.array(source.shape[::-1]) - 1) / 2
            mapped = _match.apply(_match.rotation_about(center, angle, scale), xy)
            for offset, _ in _match.vote(mapped, target.xy, 4.0, n_best=1):
                i, _ = _match.mutual_matches(mapped + offset, target.xy, 6.0)
                # As sure as a match must be that is taken: a guess would send people astray.
                log_chance = _match.chance(
                    len(i), n_stars, min(probability, 0.9), free=3, hypotheses=25.0**3
                )
                if log_chance < MAX_CHANCE and (not scale_free or abs(scale - 1) > MAX_SCALE):
                    return text.format(scale)
    return ""
