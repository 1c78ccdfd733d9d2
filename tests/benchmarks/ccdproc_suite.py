"""
Run ccdproc's own tests of Combiner and combine with ours in their place.

    python tests/benchmarks/ccdproc_suite.py [pytest arguments]

The tests are those of the installed ccdproc. Exits with 0 if those fail that are listed in
DELIBERATE, and no other. docs/user_guide/combine.rst says what each of them is about.
"""

import sys
import warnings

import pytest

#: Test: what it asks for, and what is given instead.
DELIBERATE = {
    "test_combine_bad_input": "the words of the message",
    "test_combiner_result_dtype": "uint16 gives float32, which holds it, and not float64",
    "test_average_combine_uncertainty": "np.sum as uncertainty: what is negative is made positive",
    "test_median_combine_uncertainty": "as above",
    "test_sum_combine_uncertainty": "as above",
    "test_combiner_mask_sum": "a pixel masked in all images is NaN and masked, not 0",
    "test_combiner_uncertainty_average": "scatter with n - 1: of two values it is 1.41 times",
    "test_combiner_uncertainty_average_mask": "scatter with n - 1",
    "test_combiner_uncertainty_median_mask": "scatter with n - 1, times 1.2533 for a median",
    "test_combiner_uncertainty_sum_mask": "scatter with n - 1",
}


class Swap:
    """A pytest plugin that puts our names into ccdproc before its tests are imported."""

    def __init__(self):
        self.failed, self.passed = set(), 0

    def pytest_configure(self):
        """Swap the names."""
        import ccdproc
        import ccdproc.combiner

        from astro_narrowband import InverseVarianceCombiner, combine

        for module in (ccdproc, ccdproc.combiner):
            module.Combiner, module.combine = InverseVarianceCombiner, combine

    def pytest_runtest_logreport(self, report):
        """Count."""
        if report.failed:
            self.failed.add(report.nodeid.split("::")[-1])
        elif report.when == "call" and report.passed:
            self.passed += 1


def main(arguments):
    """Run the suite and compare its failures with the list."""
    warnings.simplefilter("ignore")
    swap = Swap()
    command = ["--pyargs", "ccdproc.tests.test_combiner", "ccdproc.tests.test_combine_open_files"]
    pytest.main(
        ["-q", "-p", "no:cacheprovider", "--import-mode=prepend", *command, *arguments], [swap]
    )
    print(f"{swap.passed} passed, {len(swap.failed)} failed, {len(DELIBERATE)} of them deliberate")
    for name in sorted(swap.failed):
        print(f"  {name}: {DELIBERATE.get(name, 'NOT DELIBERATE')}")
    return int(swap.failed != set(DELIBERATE))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
