"""What the page shows things by: verdicts' signs, the colours' contrast, bars, numbers, groups of rows."""

from __future__ import annotations

import re
from importlib import resources
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.report import view
from dllm_qbench.verdict.bands import Band
from dllm_qbench.verdict.findings import Status

ASSETS = resources.files("dllm_qbench.report").joinpath("assets")


def test_every_verdict_has_a_sign_a_word_and_a_sentence() -> None:
    signs = ASSETS.joinpath("signs.html.j2").read_text("utf-8")
    colors = ASSETS.joinpath("report.css").read_text("utf-8")
    assert set(get_args(Status)) | {"informational"} == set(view.STATUSES)
    for status in [*view.STATUSES, "unknown"]:
        assert f'id="i-{status}"' in signs
        assert f".t-{status}" in colors


def colors(theme: int) -> dict[str, tuple[int, ...]]:
    """The page's colours, of the light theme (0) or the dark one (1)."""
    text = ASSETS.joinpath("report.css").read_text("utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\(#([0-9a-f]{6}), #([0-9a-f]{6})\)", text)
    return {name: tuple(bytes.fromhex(both[theme])) for name, *both in pairs}


def luminance(color: tuple[int, ...]) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    shares = [part / 255 for part in color]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_wcags() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((0x77, 0x77, 0x77), (255, 255, 255)) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", [0, 1])
def test_each_shade_carries_its_text(theme: int) -> None:
    found = colors(theme)
    parts = ASSETS.joinpath("parts.css").read_text("utf-8")
    for shade in range(len(view.STEPS) + 1):
        rule = re.search(rf"\.h{shade}[,\s][^}}]*--on: var\(--([\w-]+)\)", parts)
        assert rule is not None
        assert contrast(found[f"h{shade}"], found[rule[1]]) >= 4.5, shade


@pytest.mark.parametrize("theme", [0, 1])
def test_shades_differ_in_lightness_alone_and_in_one_direction(theme: int) -> None:
    """So that they read the same to who sees no colours, and on paper."""
    found = colors(theme)
    steps = [luminance(found[f"h{shade}"]) for shade in range(len(view.STEPS) + 1)]
    for before, after in pairwise(steps):
        darker, lighter = (after, before) if theme == 0 else (before, after)
        assert (lighter + 0.05) / (darker + 0.05) > 1.06


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("back", ["panel", "page", "sunken", "fail-soft"])
def test_each_word_is_legible_on_each_ground(theme: int, back: str) -> None:
    found = colors(theme)
    for name in ("ink", "ink-2", "link", "fail", "pass", "warn", "infra"):
        assert contrast(found[name], found[back]) >= 4.5, name


@pytest.mark.parametrize(
    ("drop", "step"), [(-3.0, 0), (0.0, 0), (0.99, 0), (1.0, 1), (4.99, 2), (60.0, 9), (100.0, 9)]
)
def test_steps_start_at_their_limit(drop: float, step: int) -> None:
    assert view.step(drop) == step
    assert view.step(None) is None
    assert len(view.steps()) == len(view.STEPS) + 1


@pytest.mark.parametrize(
    "band",
    [
        Band("near-lossless", max_drop=2.5),
        Band("collapse", min_drop=20),
        Band("graceful", min_drop=-0.5, max_drop=6),
    ],
    ids=str,
)
def test_a_bar_shows_the_band_that_the_text_names(band: Band) -> None:
    drawn = view.bar({"drop": 3.0, "interval": [1.0, 5.0], "band": str(band)})
    assert drawn is not None
    limits = [limit for limit in (band.min_drop, band.max_drop) if limit is not None]
    assert [label for _, label in drawn["limits"]] == [
        f"{limit:g}".replace("-", "−") for limit in limits
    ]
    assert (drawn["allowed"][0] == 0) == (band.min_drop is None)
    assert (drawn["allowed"][1] == 100) == (band.max_drop is None)


_percent = st.floats(-100, 100).map(lambda value: round(value, 2))


@given(
    _percent, st.tuples(_percent, _percent).map(sorted), st.tuples(_percent, _percent).map(sorted)
)
def test_a_bar_keeps_the_order_of_what_it_shows(
    drop: float, interval: list[float], limits: list[float]
) -> None:
    band = str(Band("graceful", *limits))
    drawn = view.bar({"drop": drop, "interval": interval, "band": band})
    assert drawn is not None
    shown = [drawn["drop"], *drawn["interval"], *drawn["allowed"], drawn["zero"]]
    values = [drop, *interval, *(float(f"{limit:g}") for limit in limits), 0.0]
    assert all(0 <= at <= 100 for at in shown)
    for one, at in zip(values, shown, strict=True):
        for other, place in zip(values, shown, strict=True):
            assert one > other or at <= place


@pytest.mark.parametrize("band", ["", "not stored", "graceful x..y", "collapse >=inf"])
def test_a_text_that_is_no_band_draws_none(band: str) -> None:
    drawn = view.bar({"drop": 3.0, "interval": None, "band": band})
    assert drawn is not None
    assert drawn["allowed"] is None
    assert view.bar({"drop": None, "interval": None, "band": band}) is None


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (1.25, "1.2"), (-0.04, "0.0"), (-1.0, "−1.0"), (0.0, "0.0")]
)
def test_numbers_have_a_real_minus_and_no_negative_zero(value: float | None, text: str) -> None:
    assert view.number(value) == text


def _rows(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"method": method, "scheme": scheme} for method, scheme in pairs]


@pytest.mark.parametrize(
    ("rows", "starts"),
    [
        ([("rtn", "a"), ("rtn", "b"), ("gptq", "a"), ("gptq", "b")], [0, 0, 1, 0]),
        ([("rtn", "a"), ("gptq", "a"), ("rtn", "b"), ("gptq", "b")], [0, 0, 1, 0]),
        ([("rtn", "a"), ("gptq", "b"), ("awq", "c")], [0, 0, 0]),
        ([("rtn", "a")], [0]),
        ([], []),
    ],
)
def test_rows_are_grouped_by_what_changes_less(
    rows: list[tuple[str, str]], starts: list[int]
) -> None:
    assert [int(start) for _, start in view.grouped(_rows(*rows))] == starts
