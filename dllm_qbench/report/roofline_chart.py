"""The kernels' roofline as a Vega-Lite specification, with its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm_qbench.report.charts import SEEN, STORED, Spec, chart


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
    return chart(
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
                        "scale": {"domain": [False, True], "range": [SEEN, STORED]},
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
