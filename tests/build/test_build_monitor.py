"""The fraction of a build that is done, and work that Ctrl-C can stop."""

from __future__ import annotations

import pytest

from dpm_edge.build.trt.monitor import Phases, stoppable


def test_the_fraction_by_hand() -> None:
    """Four steps; inside the second a phase of two, inside whose first a phase of five."""
    phases = Phases()
    assert phases.fraction == 0
    phases.start("build", None, 4)
    phases.step("build", 0)
    assert phases.fraction == pytest.approx(1 / 4)
    phases.start("timing", "build", 2)
    phases.start("tactics", "timing", 5)
    phases.step("tactics", 2)
    assert phases.fraction == pytest.approx((1 + (3 / 5) / 2) / 4)
    assert phases.current == "tactics"
    phases.finish("tactics")
    phases.step("timing", 0)
    assert phases.fraction == pytest.approx((1 + 1 / 2) / 4)
    phases.finish("timing")
    phases.step("build", 3)
    assert phases.fraction == 1


def test_the_fraction_never_falls_nor_passes_one() -> None:
    """A phase that comes twice, steps beyond the end, steps of phases that nobody started."""
    phases = Phases()
    phases.start("build", None, 2)
    phases.start("tactics", "build", 3)
    phases.step("tactics", 2)
    before = phases.fraction
    phases.start("tactics", "build", 3)
    assert phases.fraction == before == 0.5
    phases.step("nobody", 5)
    phases.step("build", 99)
    assert phases.fraction == 1
    phases.start("empty", None, 0)
    assert phases.fraction == 1


def test_work_gives_its_result_or_its_error() -> None:
    assert stoppable(lambda: 3, lambda: None) == 3

    def fails() -> None:
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        stoppable(fails, lambda: None)
