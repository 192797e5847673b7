"""The kill matrix: every harmful fault has to be caught, no benign change may be.

pytest -m faults            all of them: about 26 minutes on one core (-n 2 --dist worksteal: two)
pytest -m faults -k gptq    some

Without ``-m faults`` a sample runs, one fault of each area.
"""

from __future__ import annotations

import pytest

from tests.meta.conftest import FAULT
from tests.meta.faults.catalogue import FAULTS
from tests.meta.faults.fault import Fault
from tests.meta.faults.kill import complaints, first_check

SURVIVORS: dict[str, str] = {
    "confidence-in-bf16-ties-from-the-end": "the embedded models' confidences are so far apart that no"
    " answer of 500 changes; tests/unit/test_sampler.py holds the order of ties",
}
"""Harmful faults that the quick tier does not catch, and why. Each is an expected failure: one that is
caught after all fails the run."""


def marked(fault: Fault) -> list[pytest.MarkDecorator]:
    marks: list[pytest.MarkDecorator] = [pytest.mark.faults]
    if fault.name in SURVIVORS:
        marks.append(pytest.mark.xfail(reason=SURVIVORS[fault.name], strict=True))
    return marks


HARMFUL = [pytest.param(f, id=f.name, marks=marked(f)) for f in FAULTS if f.severity == "harmful"]
BENIGN = [pytest.param(f, id=f.name, marks=marked(f)) for f in FAULTS if f.severity == "benign"]


@pytest.mark.parametrize("fault", HARMFUL)
def test_harmful_fault_is_caught(fault: Fault, request: pytest.FixtureRequest) -> None:
    caught = first_check(fault)
    request.node.user_properties.append((FAULT, [fault.name, "harmful", caught and caught.check]))
    assert caught is not None, f"nothing caught this: {fault.what}"


@pytest.mark.parametrize("fault", BENIGN)
def test_benign_change_is_not_flagged(fault: Fault, request: pytest.FixtureRequest) -> None:
    found = list(complaints(fault))
    first = found[0].check if found else None
    request.node.user_properties.append((FAULT, [fault.name, "benign", first]))
    assert not found, f"flagged, though benign: {fault.what}\n" + "\n".join(
        f"{caught.check}: {caught.text}" for caught in found
    )
