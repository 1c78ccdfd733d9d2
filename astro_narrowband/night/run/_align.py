"""The lights of a target on one grid; those that show another field are a panel of their own."""

from astro_narrowband.exceptions import InputError, NarrowbandError
from astro_narrowband.night.run._light import times_of
from astro_narrowband.registration import Alignment, align_group
from astro_narrowband.resampling import ResampledFrame


def register(night, lights):
    """Return the lights that can be aligned with the best of them, and its name."""
    settings = night.settings
    if not lights or settings.registration == "none":
        for light in lights:
            light.alignment = Alignment.identity("none")
        return _on_one_grid(lights), ""
    options = {"positions": settings.stars} if settings.registration == "centroid" else {}
    result = _aligned(night, lights, **options)
    kept, lost = [], []
    for light, alignment in zip(lights, result.alignments, strict=True):
        if isinstance(alignment, Alignment):
            light.alignment = alignment
            kept.append(light)
        else:
            lost.append((light, str(alignment)))
    if not options:
        lost = _split_panel(night, lost)
    for light, reason in lost:
        night.leave_out(light.row, reason, light.group)
    if options and len(kept) == 1 < len(lights):
        raise InputError(f"no light can be aligned on the stars given: {lost[0][1]}")
    reference = lights[result.reference]
    return _on_one_grid(kept, reference), reference.row.name


def _on_one_grid(lights, *first):
    """Give aligned lights the WCS of the first that has one, ``first`` before all others."""
    headers = (ResampledFrame(each.frame, each.alignment).header for each in (*first, *lights))
    grid = next((header for header in headers if "CTYPE1" in header), None)
    for light in lights:
        light.grid = grid
    return lights


def _aligned(night, lights, **options):
    """Align lights with the best of them."""
    return align_group(
        [light.frame for light in lights],
        method=night.settings.registration,
        times=times_of(lights),
        labels=[light.group.filter for light in lights],
        tables=[light.stars for light in lights],
        workers=night.workers,
        **options,
    )


def _split_panel(night, lost):
    """Make a panel of lost lights that can be aligned with each other; return the others."""
    if len(lost) < 2:
        return lost
    try:
        result = _aligned(night, [light for light, _ in lost])
    except NarrowbandError:
        return lost
    is_panel = [isinstance(alignment, Alignment) for alignment in result.alignments]
    if sum(is_panel) < 2:
        return lost
    name = night.panels.name_for(lost[0][0].group)
    moved = [light for (light, _), moves in zip(lost, is_panel, strict=True) if moves]
    for light in moved:
        night.panels.move(light.row, light.group, name)
    night.messages.say(
        f"{moved[0].row.name} and {len(moved) - 1} more: show other stars than the lights of "
        f"{moved[0].group.object}, and the same among themselves: they become {name}"
    )
    return [pair for pair, moves in zip(lost, is_panel, strict=True) if not moves]
