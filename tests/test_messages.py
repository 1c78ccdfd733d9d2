"""What a run says: to those who listen in its own context, and once."""

import shutil
import threading
import warnings
from contextlib import ExitStack

import pytest

from astro_narrowband._engine.frames import Threads
from astro_narrowband.exceptions import NarrowbandWarning, listening, warn
from astro_narrowband.night.messages import Messages
from astro_narrowband.night.pipeline import Settings, reduce_night
from astro_narrowband.simulate import simulate_night


def test_without_a_run_a_warning_is_one_of_python():
    with pytest.warns(NarrowbandWarning, match="of a frame") as caught:
        warn("of a frame")
    assert caught[0].filename == __file__


def test_what_is_said_twice_is_kept_and_shown_once_to_who_listened_before():
    shown = []
    with listening(lambda text, level: shown.append((level, text))), Messages() as messages:
        warn("cloud")
        messages.say("cloud")
        messages.say("no light", "error")
    assert shown == [("warning", "cloud"), ("error", "no light")]
    assert messages.found == [{"level": level, "text": text} for level, text in shown]


def test_threads_and_their_threads_say_it_to_their_own_run():
    """While other threads change the filters of Python's warnings, which all share."""
    heard, over = {}, threading.Event()

    def disturb():
        while not over.is_set():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")

    def run(name):
        with listening(lambda *_: None), Messages() as messages, Threads(3) as pool:
            list(pool.map(lambda k: warn(f"{name} {k}"), range(200)))
        heard[name] = {m["text"] for m in messages.found}

    show = warnings.showwarning
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        others = Threads(8)
        stack.enter_context(others)
        stack.callback(over.set)
        [others.submit(disturb) for _ in range(2)]
        list(others.map(run, "abcd"))
    assert heard == {name: {f"{name} {k}" for k in range(200)} for name in "abcd"}
    assert warnings.showwarning is show


def test_two_nights_in_one_process_have_their_own_messages_and_status(tmp_path):
    records, show = {}, warnings.showwarning
    simulate_night(
        tmp_path / "a", shape=(160, 160), filters=("Halpha",), n_bias=4, n_darks=3, n_flats=3,
        light_exposures=(60.0,) * 4, seed=4,
    )  # fmt: skip
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    # Only one of the two has something to warn of.
    (tmp_path / "b" / "light" / "broken.fits").write_bytes(b"SIMPLE  =")

    def reduce(name):
        settings = Settings(strict=True, workers=2)
        with listening(lambda *_: None):
            out = tmp_path / f"out-{name}"
            records[name] = reduce_night(tmp_path / name, out, settings=settings)

    with Threads(2) as pool:
        list(pool.map(reduce, "ab"))
    words = {name: " ".join(m["text"] for m in r["messages"]) for name, r in records.items()}
    assert "broken.fits" in words["b"]
    assert "broken.fits" not in words["a"]
    assert records["b"]["status"] == 3
    assert (records["a"]["status"], records["a"]["messages"]) == (0, [])
    assert warnings.showwarning is show
