"""The page's charts as Vega-Lite specifications. Data is filled in by the page's script, cell by cell.

Colours are the page's own CSS variables: a chart follows the theme, and the printer's, without being drawn
again. Each dataset's rows are named here, in ``ROWS``; a test draws every chart with such rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

SCHEMA: Final = "https://vega.github.io/schema/vega-lite/v6.json"

Spec = dict[str, Any]

ROWS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "sqnr": {
        "modules": ("position", "module", "seen", "stored"),
        "suspect": ("position", "label"),
    },
    "mask_ratio": {"bins": ("ratio", "low", "middle", "high")},
    "trajectory": {"steps": ("step", "series", "share")},
    "kinds": {"kinds": ("kind", "items", "reference", "quantized")},
}
"""Fields of the rows of each chart's datasets."""

CONFIG: Final[Spec] = {
    "background": "transparent",
    "font": "inherit",
    "view": {"stroke": None},
    "axis": {
        "domainColor": "var(--line-strong)",
        "gridColor": "var(--line)",
        "tickColor": "var(--line-strong)",
        "labelColor": "var(--ink-2)",
        "titleColor": "var(--ink-2)",
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "labelFont": "inherit",
        "titleFont": "inherit",
    },
    "text": {"font": "inherit", "fontSize": 11},
    "legend": {"labelColor": "var(--ink-2)", "titleColor": "var(--ink-2)"},
}
"""What all charts share."""

SEEN: Final = "var(--series-1)"
STORED: Final = "var(--series-2)"
"""Colours of what was measured now, and of what it is held against."""
_FAIL: Final = "var(--fail)"


def templates() -> dict[str, Spec]:
    """Each of a cell's charts, without data."""
    made = {
        "sqnr": _sqnr(),
        "mask_ratio": _mask_ratio(),
        "trajectory": _trajectory(),
        "kinds": _kinds(),
    }
    for name, spec in made.items():
        spec["datasets"] = {dataset: [] for dataset in ROWS[name]}
    return made


def chart(**parts: Any) -> Spec:
    """What all charts are: as wide as their place, in the page's colours."""
    return {
        "$schema": SCHEMA,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": CONFIG,
        **parts,
    }


def _sqnr() -> Spec:
    """SQNR by module, this run's and the stored one; a rule and a label mark the suspect.

    The script sets ``ticks`` (label by position), the axis's values and ``side``, the label's alignment.
    """
    tooltip = [
        {"field": "module", "title": "module"},
        {"field": "seen", "title": "this run, dB", "format": ".2f"},
        {"field": "stored", "title": "baseline, dB", "format": ".2f"},
    ]
    y = {"type": "quantitative", "title": "dB", "scale": {"zero": False}, "axis": {"tickCount": 5}}
    modules = {"name": "modules"}
    return chart(
        height=150,
        params=[{"name": "ticks", "value": {}}, {"name": "side", "value": "left"}],
        encoding={
            "x": {
                "field": "position",
                "type": "quantitative",
                "title": None,
                "scale": {"zero": False, "nice": False, "padding": 8},
                "axis": {"values": [], "labelExpr": "ticks[datum.value]", "labelAlign": "left"},
            }
        },
        layer=[
            {
                "data": {"name": "suspect"},
                "mark": {"type": "rule", "color": _FAIL, "strokeWidth": 1.5},
            },
            {
                "data": modules,
                "mark": {
                    "type": "line",
                    "color": STORED,
                    "strokeDash": [4, 3],
                    "strokeWidth": 1.5,
                },
                "encoding": {"y": {**y, "field": "stored"}},
            },
            {
                "data": modules,
                "mark": {"type": "line", "color": SEEN, "strokeWidth": 1.75},
                "encoding": {"y": {**y, "field": "seen"}},
            },
            {
                "data": modules,
                "mark": {"type": "point", "color": SEEN, "filled": True, "opacity": 1, "size": 26},
                "encoding": {"y": {**y, "field": "seen"}, "tooltip": tooltip},
            },
            {
                "data": {"name": "suspect"},
                "mark": {
                    "type": "text",
                    "color": _FAIL,
                    "fontWeight": "bold",
                    "align": {"expr": "side"},
                    "dx": {"expr": "side == 'left' ? 6 : -6"},
                    "baseline": "bottom",
                    "y": -3,
                },
                "encoding": {"text": {"field": "label"}},
            },
        ],
    )


def _mask_ratio() -> Spec:
    """Divergence from full precision by the share of tokens that are masked: median and quartiles."""
    tooltip = [
        {"field": "ratio", "title": "masked share", "format": ".0%"},
        {"field": "middle", "title": "median log10 KL", "format": ".2f"},
        {"field": "low", "title": "lower quartile", "format": ".2f"},
        {"field": "high", "title": "upper quartile", "format": ".2f"},
    ]
    y = {"type": "quantitative", "scale": {"zero": False}, "axis": {"tickCount": 5}}
    return chart(
        height=160,
        data={"name": "bins"},
        encoding={
            "x": {
                "field": "ratio",
                "type": "quantitative",
                "title": "share of tokens that are masked",
                "scale": {"domain": [0, 1]},
                "axis": {"format": ".0%", "tickCount": 5, "grid": False},
            }
        },
        layer=[
            {
                "mark": {"type": "area", "color": SEEN, "opacity": 0.18},
                "encoding": {
                    "y": {**y, "field": "low", "title": "log10 KL"},
                    "y2": {"field": "high"},
                },
            },
            {
                "mark": {"type": "line", "color": SEEN, "strokeWidth": 1.75},
                "encoding": {"y": {**y, "field": "middle", "title": "log10 KL"}},
            },
            {
                "mark": {"type": "point", "color": SEEN, "filled": True, "opacity": 1, "size": 30},
                "encoding": {
                    "y": {**y, "field": "middle", "title": "log10 KL"},
                    "tooltip": tooltip,
                },
            },
        ],
    )


def _trajectory() -> Spec:
    """By denoising step: tokens committed otherwise, and sequences that have diverged by then.

    The script sets the axis's values.
    """
    return chart(
        height=160,
        data={"name": "steps"},
        mark={
            "type": "line",
            "strokeWidth": 1.75,
            "point": {"filled": True, "size": 30, "opacity": 1},
        },
        encoding={
            "x": {
                "field": "step",
                "type": "quantitative",
                "title": "denoising step",
                "axis": {"values": [], "format": "d", "grid": False},
                "scale": {"zero": False, "nice": False, "padding": 8},
            },
            "y": {
                "field": "share",
                "type": "quantitative",
                "title": None,
                "axis": {"format": ".0%", "tickCount": 5},
            },
            "color": {
                "field": "series",
                "type": "nominal",
                "legend": None,
                "scale": {"domain": ["flips", "diverged"], "range": [STORED, SEEN]},
            },
            "tooltip": [
                {"field": "step", "title": "step"},
                {"field": "series", "title": "what"},
                {"field": "share", "title": "share", "format": ".1%"},
            ],
        },
    )


def _kinds() -> Spec:
    """Share of right answers by kind of item, full precision's and the quantized model's.

    The script sets the height, by how many kinds there are.
    """
    x = {
        "type": "quantitative",
        "title": "right answers",
        "scale": {"zero": False, "padding": 8},
        "axis": {"format": ".0%", "tickCount": 5},
    }
    tooltip = [
        {"field": "kind", "title": "kind"},
        {"field": "items", "title": "items"},
        {"field": "reference", "title": "full precision", "format": ".1%"},
        {"field": "quantized", "title": "quantized", "format": ".1%"},
    ]
    point = {"type": "point", "filled": True, "opacity": 1, "size": 60}
    return chart(
        height=100,
        data={"name": "kinds"},
        encoding={
            "y": {
                "field": "kind",
                "type": "nominal",
                "title": None,
                "sort": None,
                "axis": {"grid": True, "labelLimit": 130, "ticks": False, "domain": False},
            },
            "tooltip": tooltip,
        },
        layer=[
            {
                "mark": {"type": "rule", "color": "var(--line-strong)", "strokeWidth": 2},
                "encoding": {"x": {**x, "field": "reference"}, "x2": {"field": "quantized"}},
            },
            {
                # A ring: where both agree, the dot lies in it.
                "mark": {**point, "filled": False, "size": 110, "color": STORED},
                "encoding": {"x": {**x, "field": "reference"}},
            },
            {
                "mark": {**point, "color": SEEN},
                "encoding": {"x": {**x, "field": "quantized"}},
            },
        ],
    )
