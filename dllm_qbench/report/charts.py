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

_SEEN: Final = "var(--series-1)"
_STORED: Final = "var(--series-2)"
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


def _chart(**parts: Any) -> Spec:
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
    return _chart(
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
                    "color": _STORED,
                    "strokeDash": [4, 3],
                    "strokeWidth": 1.5,
                },
                "encoding": {"y": {**y, "field": "stored"}},
            },
            {
                "data": modules,
                "mark": {"type": "line", "color": _SEEN, "strokeWidth": 1.75},
                "encoding": {"y": {**y, "field": "seen"}},
            },
            {
                "data": modules,
                "mark": {"type": "point", "color": _SEEN, "filled": True, "opacity": 1, "size": 26},
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
    return _chart(
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
                "mark": {"type": "area", "color": _SEEN, "opacity": 0.18},
                "encoding": {
                    "y": {**y, "field": "low", "title": "log10 KL"},
                    "y2": {"field": "high"},
                },
            },
            {
                "mark": {"type": "line", "color": _SEEN, "strokeWidth": 1.75},
                "encoding": {"y": {**y, "field": "middle", "title": "log10 KL"}},
            },
            {
                "mark": {"type": "point", "color": _SEEN, "filled": True, "opacity": 1, "size": 30},
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
    return _chart(
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
                "scale": {"domain": ["flips", "diverged"], "range": [_STORED, _SEEN]},
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
    return _chart(
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
                "mark": {**point, "filled": False, "size": 110, "color": _STORED},
                "encoding": {"x": {**x, "field": "reference"}},
            },
            {
                "mark": {**point, "color": _SEEN},
                "encoding": {"x": {**x, "field": "quantized"}},
            },
        ],
    )


def roofline(data: Mapping[str, Any]) -> Spec:
    """Kernels on log-log axes under the machine's roofs: memory's slope and a peak for each number format.

    Args:
        data: ``roofline`` of the report's data: GB/s, GFLOP/s by format, and the measured points.
    """
    bandwidth, peaks = data["roofs"]["GB/s"], data["roofs"]["peaks"]
    points = data["points"]
    highest = max(peaks.values(), default=1.0)
    ridge = highest / bandwidth
    left = min([point["intensity"] for point in points] + [ridge]) / 2
    right = max([point["intensity"] for point in points] + [ridge]) * 2
    roofs = [
        {"roof": name, "intensity": x, "performance": min(peak, bandwidth * x)}
        for name, peak in peaks.items()
        for x in sorted({left, min(max(peak / bandwidth, left), right), right})
    ]
    # At the ridge: further to the right lie the points.
    labels = [
        {"roof": f"{name} {peak:.4g}", "intensity": peak / bandwidth, "performance": peak}
        for name, peak in peaks.items()
    ]
    lowest = min([point["performance"] for point in points] + [bandwidth * left]) / 1.5
    log = {"type": "log", "nice": False}
    x = {
        "field": "intensity",
        "type": "quantitative",
        "title": "arithmetic intensity, FLOP per byte",
        "scale": {**log, "domain": [left, right]},
        "axis": {"tickCount": 6, "format": "~g", "grid": False},
    }
    y = {
        "field": "performance",
        "type": "quantitative",
        "title": "GFLOP/s",
        "scale": {**log, "domain": [lowest, highest * 1.6]},
        "axis": {"tickCount": 6, "format": "~s", "grid": False},
    }
    return _chart(
        description=f"Roofline of {data['machine']}: {len(points)} kernels; the table below has the figures.",
        height=320,
        datasets={"roofs": roofs, "labels": labels, "points": list(points)},
        encoding={"x": x, "y": y},
        layer=[
            {
                "data": {"name": "roofs"},
                "mark": {"type": "line", "color": "var(--ink-2)", "strokeWidth": 1.5},
                "encoding": {"detail": {"field": "roof"}},
            },
            {
                "data": {"name": "labels"},
                "mark": {
                    "type": "text",
                    "align": "left",
                    "dx": 6,
                    "dy": -7,
                    "color": "var(--ink-2)",
                },
                "encoding": {"text": {"field": "roof"}},
            },
            {
                "data": {"name": "points"},
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.95},
                "encoding": {
                    "color": {
                        "field": "rival",
                        "type": "nominal",
                        "legend": None,
                        "scale": {"domain": [False, True], "range": [_SEEN, _STORED]},
                    },
                    "shape": {
                        "field": "rival",
                        "type": "nominal",
                        "legend": None,
                        "scale": {"domain": [False, True], "range": ["circle", "diamond"]},
                    },
                    "tooltip": [
                        {"field": "name", "title": "kernel"},
                        {"field": "shape", "title": "shape"},
                        {"field": "intensity", "title": "FLOP/byte", "format": ".3~s"},
                        {"field": "performance", "title": "GFLOP/s", "format": ".3~s"},
                        {"field": "share", "title": "of the roof", "format": ".0%"},
                    ],
                },
            },
        ],
    )
