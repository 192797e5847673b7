"""The page's charts: their fields are what the script writes, and each can be drawn."""

from __future__ import annotations

import json
import re
from importlib import resources

import pytest

from dllm_qbench.report import charts, roofline_chart
from tests.helpers.report_example import example

ASSETS = resources.files("dllm_qbench.report").joinpath("assets")


_SAMPLE = {"position": 1, "module": "m", "label": "m", "kind": "k", "series": "flips", "step": 1}


@pytest.mark.parametrize("name", charts.ROWS)
def test_a_chart_reads_the_fields_that_the_script_writes(name: str) -> None:
    spec = charts.templates()[name]
    used = set(re.findall(r'"field": "(\w+)"', json.dumps(spec)))
    written = {field for fields in charts.ROWS[name].values() for field in fields}
    assert used == written
    script = ASSETS.joinpath("profile.js").read_text("utf-8")
    for dataset, fields in charts.ROWS[name].items():
        assert re.search(rf"\b{dataset}: ", script)
        for field in fields:
            assert re.search(rf"\b{field}\b[:,\s]", script), field


@pytest.mark.parametrize("name", charts.ROWS)
def test_each_chart_is_drawn(name: str) -> None:
    vl_convert = pytest.importorskip("vl_convert")
    spec = charts.templates()[name] | {"width": 300, "autosize": "pad"}
    for dataset, fields in charts.ROWS[name].items():
        spec["datasets"][dataset] = [
            {field: _SAMPLE.get(field, 0.25 * row) for field in fields} for row in (1, 2)
        ]
    svg = vl_convert.vegalite_to_svg(spec, vl_version="6.1")
    assert svg.count("mark-symbol") >= 1
    assert "var(--series-" in svg
    assert "NaN" not in svg


def test_the_roofline_has_its_roofs_and_points() -> None:
    vl_convert = pytest.importorskip("vl_convert")
    data = example()["roofline"]
    spec = roofline_chart.roofline(data)
    for peak, performance in data["roofs"]["peaks"].items():
        rows = [row for row in spec["datasets"]["roofs"] if row["roof"] == peak]
        assert max(row["performance"] for row in rows) == performance
        # The ridge: where memory's slope meets the peak.
        assert any(
            row["intensity"] == pytest.approx(performance / data["roofs"]["GB/s"]) for row in rows
        )
        for row in rows:
            assert row["performance"] <= data["roofs"]["GB/s"] * row["intensity"] * (1 + 1e-9)
    svg = vl_convert.vegalite_to_svg(spec | {"width": 300}, vl_version="6.1")
    assert "fp32 107" in svg
    assert "NaN" not in svg
