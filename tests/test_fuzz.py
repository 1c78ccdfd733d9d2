"""Random damage to headers and files: a verdict each time, never an exception, never for long."""

import resource
import runpy
from pathlib import Path

import pytest

MUTATE = runpy.run_path(str(Path(__file__).parent / "fuzz" / "mutate.py"))


def assert_sound(what, count, seed):
    outcomes, slowest, foreign = MUTATE["run"](what, count, seed)
    assert not [case[:3] for case in foreign]
    assert sum(outcomes.values()) == count
    # More than one outcome: the damage must not be such that nothing is ever read.
    assert len(outcomes) >= 2
    assert slowest < 2.0


@pytest.mark.parametrize("what_and_count", [("headers", 1500), ("files", 150)], ids=lambda p: p[0])
def test_damage(what_and_count):
    assert_sound(*what_and_count, seed=20251122)


@pytest.mark.long
@pytest.mark.parametrize(
    "what_and_count", [("headers", 1_000_000), ("files", 50_000)], ids=lambda p: p[0]
)
def test_much_damage(what_and_count):
    assert_sound(*what_and_count, seed=7)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1 << 20
