"""
On a cluster
============

A coadd is a loop over bands of rows, and bands do not need each other. Where they are worked on
is for you to say, with any `concurrent.futures.Executor`; a Dask cluster gives one.
"""

# %%
# Frames
# ------
#
# Six calibrated lights on disk, as a cluster should have them: workers are sent paths, and read
# the rows they need.

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty

from astro_narrowband import coadd

rng = np.random.default_rng(8)
folder = Path(tempfile.mkdtemp())
shape = (400, 500)
y, x = np.mgrid[: shape[0], : shape[1]]
places = rng.uniform(20, 380, (60, 2))
scene = 0.5 + sum(
    f * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 5)
    for (a, b), f in zip(places, rng.pareto(1, 60), strict=True)
)
paths = []
for k, t in enumerate((60, 60, 120, 120, 300, 300)):
    sigma = np.sqrt(scene / t + (5 / t) ** 2)
    frame = CCDData(
        rng.normal(scene, sigma).astype("f4"),
        unit="electron/s",
        uncertainty=StdDevUncertainty(sigma.astype("f4")),
        header=fits.Header({"EXPTIME": float(t), "MASTERID": "none"}),
    )
    paths.append(folder / f"light-{k}.fits")
    frame.write(paths[-1])

# %%
# Threads of this machine
# -----------------------

with ThreadPoolExecutor(2) as executor:
    threads = coadd(paths, executor=executor)
threads.plot()
threads

# %%
# A Dask cluster
# --------------
#
# Here it runs in this process, which is enough to show. ``Client("tcp://head:8786")`` is one of
# many machines, and all that changes.

from distributed import Client, LocalCluster

cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)
with cluster, Client(cluster) as client:
    dask = coadd(paths, executor=client.get_executor())

# %%
# The bits
# --------
#
# The same, wherever the bands were worked on, in whatever order they came back:

for name in ("data", "mask"):
    same = np.array_equal(getattr(threads.ccd, name), getattr(dask.ccd, name), equal_nan=True)
    print(f"{name}: {'the same to the last bit' if same else 'different'}")

# %%
# On the command line
# -------------------
#
# ``astro-narrowband reduce night -o reduced --scheduler tcp://head:8786``, or ``--scheduler local``
# for processes of this machine. The night and OUT must be on a disk that all workers see. What it
# takes to reduce many nights is worked out in :doc:`/user_guide/scaling`.
