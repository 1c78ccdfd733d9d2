"""
Combining frames, side by side with what else does it.

Run it as ``python tests/benchmarks/bench_combine.py [--size 4096] [--frames 12]
[--repeat 3] [--folder DIR]``. It simulates uint16 frames (read noise, hot
pixels, cosmic rays), keeps them in the folder, and prints one table a block:
ours, ``ccdproc.combine``, numpy as one writes it in a notebook, bottleneck,
and Siril, IRAF, Gnuastro and SWarp where they are installed. All read files
and write a file. The page cache is warm. Siril writes its result as 32-bit
floats, as we do; ours without ``uncertainty`` is what the C programs do.
"""

import argparse
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from astropy.io import fits

sys.path.insert(0, str(Path(__file__).parent))
from _harness import best_of, python, table

OURS = "from astro_narrowband.coaddition import combine"
LIST = "import glob; paths = sorted(glob.glob({pattern!r}))"


def simulate(folder, n, size, seed=1):
    """Write ``n`` frames of bias, noise, hot pixels and cosmic rays, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if len(list(folder.glob("f*.fit"))) == n:
        return str(folder / "f*.fit")
    base = np.full((size, size), 1000, np.float32)
    hot = rng.random(base.shape) < 1e-3
    base[hot] += rng.uniform(500, 5000, hot.sum()).astype(np.float32)
    for i in range(n):
        path = folder / f"f{i:05d}.fit"
        frame = base + 10 * rng.standard_normal(base.shape, np.float32)
        hit = rng.random(base.shape) < 2e-4
        frame[hit] += rng.uniform(200, 30000, hit.sum()).astype(np.float32)
        if path.exists():
            continue
        hdu = fits.PrimaryHDU(np.clip(np.rint(frame), 0, 65535).astype(np.uint16))
        hdu.header.update(EXPTIME=60.0, BUNIT="adu", OBJECT="bench")
        hdu.writeto(path)
    return str(folder / "f*.fit")


def simulate_apart(folder, n, size):
    """As `simulate`, in a process of its own: a child's peak RSS is never below its parent's."""
    with ProcessPoolExecutor(1) as pool:
        return pool.submit(simulate, folder, n, size).result()


def ours(pattern, out, arguments):
    """The command for our own combine."""
    return (
        python(
            f"{OURS}\n{LIST.format(pattern=pattern)}",
            f"combine(paths, {str(out)!r}, overwrite_output=True, {arguments})",
        ),
        {},
    )


def ccdproc_case(pattern, out, arguments):
    """The command for ccdproc.combine; its default of float64 and 16 GB."""
    return (
        python(
            "import ccdproc, warnings; warnings.simplefilter('ignore')\n"
            + LIST.format(pattern=pattern),
            f"ccdproc.combine(paths, {str(out)!r}, overwrite_output=True, unit=None, {arguments})",
        ),
        {},
    )


def array_case(pattern, out, imports, expression, dtype="float"):
    """The command for a function of the whole stack in memory."""
    return (
        python(
            f"import numpy as np\nfrom astropy.io import fits\n{imports}\n"
            + LIST.format(pattern=pattern),
            f"stack = np.array([fits.getdata(p) for p in paths], {dtype})\n"
            f"fits.writeto({str(out)!r}, ({expression}).astype(np.float32), overwrite=True)",
        ),
        {},
    )


def siril(folder, work, command):
    """Siril on a sequence ``f00000.fit`` ... in ``folder``; scripts are read from stdin."""
    script = work / f"{command.replace(' ', '-')}.ssf"
    script.write_text(
        f"requires 1.0.0\nset32bits\nsetext fit\ncd {folder}\n"
        f"stack f {command} -nonorm -out={work / 'siril.fit'}\n"
    )
    return [shutil.which("siril-cli") or "siril-cli", "-d", str(folder), "-s", str(script)], {
        "product": work / "siril.fit"
    }


def iraf(pattern, work, arguments):
    """Run IRAF's imcombine; it keeps its parameters in a home of its own."""
    home = work / "iraf"
    (home / "uparm").mkdir(parents=True, exist_ok=True)
    script = (
        'set imtype = "fits"\nimages\nimmatch\n'
        f'imcombine ("{pattern}", "{work / "iraf.fits"}", {arguments}, '
        'outtype="real", logfile="")\n'
        "logout\n"
    )
    return (
        [shutil.which("irafcl") or "irafcl"],
        {
            "product": work / "iraf.fits",
            "cwd": home,
            "stdin": script,
            "env": {"HOME": str(home), "USER": "bench", "TERM": "dumb"},
        },
    )


def gnuastro(paths, work, operator):
    """Gnuastro's astarithmetic."""
    command = [shutil.which("astarithmetic") or "astarithmetic", *paths, *operator.split()]
    return [*command, "-g0", f"--output={work / 'gnuastro.fits'}"], {
        "product": work / "gnuastro.fits"
    }


def swarp(paths, work, kind):
    """SWarp without resampling or background."""
    options = (
        f"-COMBINE_TYPE {kind} -RESAMPLE N -SUBTRACT_BACK N -WRITE_XML N -NTHREADS 0 "
        f"-IMAGEOUT_NAME {work / 'swarp.fits'} -WEIGHTOUT_NAME {work / 'swarp.weight.fits'} "
        "-VERBOSE_TYPE QUIET"
    ).split()
    return [shutil.which("SWarp") or "SWarp", *paths, *options], {
        "cwd": work,
        "product": work / "swarp.fits",
    }


def installed(cases, programs):
    """Leave out the cases whose program is not there."""
    return {
        name: case
        for name, case in cases.items()
        if name.split()[0] not in programs or shutil.which(programs[name.split()[0]])
    }


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=["median", "clipped", "planes", "scaling"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        work = Path(temporary)
        run(folder, work, arguments)


def run(folder, work, arguments):
    """All blocks, or one."""
    size, n, repeat = arguments.size, arguments.frames, arguments.repeat
    data = folder / f"{n}x{size}"
    pattern = simulate_apart(data, n, size)
    paths = sorted(data.glob("f*.fit"))
    out = work / "out.fits"
    programs = {
        "Siril": "siril-cli",
        "IRAF": "irafcl",
        "Gnuastro": "astarithmetic",
        "SWarp": "SWarp",
    }

    def prepare():
        for name in ("iraf.fits", "siril.fit", "gnuastro.fits", "swarp.fits", "out.fits"):
            (work / name).unlink(missing_ok=True)

    what = f"{n} x {size} x {size} uint16, file to file"
    plain = "method='median', uncertainty=None"
    if arguments.only in (None, "median"):
        cases = {
            "ours": ours(pattern, out, plain),
            "ours, with uncertainty": ours(pattern, out, "method='median'"),
            "ours, one thread": ours(pattern, out, plain + ", workers=1"),
            "only reading into float32": array_case(pattern, out, "", "stack[0]", "np.float32"),
            "ccdproc.combine": ccdproc_case(pattern, out, "method='median'"),
            "numpy, as the notebook": array_case(pattern, out, "", "np.median(stack, axis=0)"),
            "bottleneck": array_case(
                pattern, out, "import bottleneck as bn", "bn.nanmedian(stack, axis=0)"
            ),
            "Siril stack med": siril(data, work, "med"),
            "IRAF imcombine": iraf(pattern, work, 'combine="median", reject="none"'),
            "Gnuastro astarithmetic": gnuastro(paths, work, f"{n} median"),
            "SWarp": swarp(paths, work, "MEDIAN"),
        }
        figures = best_of(installed(cases, programs), repeat, prepare=prepare)
        table(f"Median of {what}", figures, "ours")
    if arguments.only in (None, "clipped"):
        winsorized = "sigma_clip=True, sigma_clip_dev_func='winsorized', maxiters=None"
        clip = "sigma_clip=True, sigma_clip_func='median', sigma_clip_dev_func='mad_std'"
        cases = {
            "ours": ours(pattern, out, clip + ", uncertainty=None"),
            "ours, with uncertainty": ours(pattern, out, clip),
            "ours, until nothing is rejected": ours(
                pattern, out, clip + ", uncertainty=None, maxiters=None"
            ),
            "ours, winsorized": ours(pattern, out, winsorized + ", uncertainty=None"),
            "ccdproc.combine": ccdproc_case(pattern, out, "method='average', " + clip),
            "Siril stack rej sigma": siril(data, work, "rej sigma 3 3"),
            "Siril stack rej winsorized": siril(data, work, "rej winsorized 3 3"),
            "IRAF imcombine sigclip": iraf(pattern, work, 'combine="average", reject="sigclip"'),
            "Gnuastro sigclip-mean": gnuastro(paths, work, f"{n} 3 1 sigclip-mean"),
            "SWarp CLIPPED": swarp(paths, work, "CLIPPED"),
        }
        figures = best_of(installed(cases, programs), repeat, prepare=prepare)
        table(f"Clipped mean (3 sigma) of {what}", figures, "ours")
    if arguments.only in (None, "planes"):
        for title, method in (("Median", "method='median'"), ("Clipped mean", "sigma_clip=True")):
            cases = {
                "ours": ours(pattern, out, method + ", uncertainty=None"),
                "ours, uncertainty and count": ours(pattern, out, method + ", return_count=True"),
            }
            for name in list(cases):
                command, keywords = cases[name]
                memory = [part.replace(f"{str(out)!r}, ", "") for part in command]
                cases[name + ", no file"] = (memory, keywords)
            figures = best_of(cases, repeat, prepare=prepare)
            table(f"{title} with more planes, {what}", figures, "ours")
    if arguments.only in (None, "scaling"):
        small, most = max(64, size // 2), 96
        pattern = simulate_apart(folder / f"{most}x{small}", most, small)
        cases = {}
        for count in (6, 12, 24, 48, 96):
            command, keywords = ours(pattern, out, plain)
            cases[f"ours, {count} frames"] = (
                [part.replace("combine(paths,", f"combine(paths[:{count}],") for part in command],
                keywords,
            )
        figures = best_of(cases, repeat, prepare=prepare)
        table(f"Median of N x {small} x {small} uint16", figures, "ours, 12 frames")


if __name__ == "__main__":
    main()
