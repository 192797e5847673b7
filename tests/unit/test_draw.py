"""Pictures of outlier maps: the same bytes each time, readable on white and on near black, on one scale."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from dllm_qbench.errors import QBenchError
from dllm_qbench.report import draw
from dllm_qbench.report.draw import page_entries, side_by_side, surface_png, write_pictures
from dllm_qbench.report.outlier_maps import OutlierMap

DOWN = "model.layers.3.mlp.down_proj"
GROUNDS = ("#ffffff", "#16181d")


def made(
    size: NDArray[np.float64],
    rotated_by: str | None = None,
    module: str = DOWN,
    model: str = "tiny",
) -> OutlierMap:
    rows = tuple(tuple(map(float, row)) for row in size)
    rms = float(np.sqrt((size**2).mean())) or 1.0
    top = float(size.max())
    return OutlierMap(model, module, "massive", rotated_by, *size.shape, rows, top, top / rms, 3.0)


def noise(rows: int, columns: int, seed: int = 0) -> NDArray[np.float64]:
    return np.abs(np.random.default_rng(seed).normal(size=(rows, columns)))


def spiked() -> NDArray[np.float64]:
    size = noise(24, 64)
    size[5, 20] = size[15, 41] = 60.0
    return size


BEFORE, AFTER = made(spiked()), made(noise(24, 64, 1), "quarot")


def pixels(png: bytes) -> NDArray[np.float64]:
    """Red, green, blue and opacity, each 0 to 1."""
    found: NDArray[np.float64] = mpl.image.imread(io.BytesIO(png), format="png")
    return found


def hot(png: bytes) -> int:
    """How many pixels have the colour of the scale's end."""
    red, green, blue, opaque = np.moveaxis(pixels(png), 2, 0)
    wanted = to_rgb(draw.COLORS[-1])
    near = sum(abs(a - b) for a, b in zip((red, green, blue), wanted, strict=True)) < 0.1
    return int((near & (opaque > 0.9)).sum())


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2: 1 for equal colours, 21 for black on white."""

    def light(color: str) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)
        ]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear)) + 0.05

    low, high = sorted((light(one), light(other)))
    return high / low


@pytest.mark.parametrize("ground", GROUNDS)
def test_colours_stand_out_from_both_grounds(ground: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    # WCAG 2.2 asks for 3:1 of graphics, and of words as large as these are
    for color in (*draw.COLORS, draw.PAGE_INK):
        assert contrast(color, ground) >= 3, color


def test_a_pair_has_one_scale_and_the_peaks_are_gone_after() -> None:
    entries = page_entries([BEFORE, AFTER])
    before, after = (base64.b64decode(one["png"].partition(",")[2]) for one in entries)
    assert before == surface_png(BEFORE)
    assert after == surface_png(AFTER, top=BEFORE.maximum) != surface_png(AFTER)
    assert hot(before) > 50
    assert hot(after) == 0
    assert hot(surface_png(AFTER)) > 0


def test_pictures_of_the_page_are_small_and_transparent() -> None:
    # as large as maps are by default, and as rough as can be
    png = surface_png(made(noise(96, 256)))
    assert 5_000 < len(png) <= draw.PAGE_BYTES == 40_000
    seen = pixels(png)
    assert seen.shape[2] == 4
    assert (seen[[0, 0, -1, -1], [0, -1, 0, -1], 3] == 0).all()
    assert (seen[..., 3] > 0.9).mean() > 0.05
    # nothing is cut off: no word or line runs into an edge
    for edge in (seen[0], seen[-1], seen[:, 0], seen[:, -1]):
        assert (edge[:, 3] == 0).all()


def test_entries_are_what_the_page_takes_in_pairs() -> None:
    other = made(noise(8, 8), None, "model.layers.0.self_attn.q_proj")
    entries = page_entries([AFTER, other, BEFORE])
    assert [(one["module"], one["rotated_by"]) for one in entries] == [
        (DOWN, None),
        (DOWN, "quarot"),
        (other.module, None),
    ]
    assert {*entries[0]} == {
        *("model", "module", "kind", "rotated_by", "maximum", "max_over_rms", "tokens", "channels"),
        *("png", "alt"),
    }
    assert (entries[0]["tokens"], entries[0]["channels"]) == (24, 64)
    assert entries[0]["alt"].startswith(
        f"Surface of the absolute values that enter {DOWN} of tiny before rotation, over 24 tokens and"
        " 64 channels: the largest is 60, "
    )
    assert "after quarot" in entries[1]["alt"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_small_maps_and_maps_of_zeros_are_drawn_too(shape: tuple[int, int]) -> None:
    for size in (np.zeros(shape), np.ones(shape)):
        assert surface_png(made(size)).startswith(b"\x89PNG")


@pytest.mark.parametrize("form", draw.FORMATS)
def test_the_same_maps_give_the_same_bytes_whatever_the_users_settings(form: str) -> None:
    first = side_by_side([BEFORE, AFTER], form)
    with mpl.rc_context({"font.size": 30, "savefig.dpi": 20, "svg.hashsalt": "other"}):
        assert side_by_side([BEFORE, AFTER], form) == first
        assert mpl.rcParams["font.size"] == 30
    assert side_by_side([AFTER, AFTER], form) != first


def test_files_are_named_by_their_linear_and_say_what_they_show(tmp_path: Path) -> None:
    odd = made(noise(8, 8), None, model="../models/my model")
    written = write_pictures([BEFORE, AFTER, odd], tmp_path / "new", ["svg", "pdf", "png"])
    assert {path.parent for path in written} == {tmp_path / "new"}
    assert sorted(path.name for path in written)[:3] == [
        "outliers-models_my_model-model.layers.3.mlp.down_proj.pdf",
        "outliers-models_my_model-model.layers.3.mlp.down_proj.png",
        "outliers-models_my_model-model.layers.3.mlp.down_proj.svg",
    ]
    assert {*tmp_path.joinpath("new").iterdir()} == {*written}
    svg, pdf, png = (path.read_bytes() for path in written[:3])
    root: Any = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    comments = " ".join(re.findall(r"<!--(.*?)-->", svg.decode(), re.DOTALL))
    for words in ("before rotation: largest 60", "after quarot", DOWN, "channel", "absolute value"):
        assert words in comments, words
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf
    assert png.startswith(b"\x89PNG")
    assert b"<dc:date>" not in svg


def test_unknown_formats_and_places_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    with pytest.raises(QBenchError, match="format 'gif' is unknown; expected svg, pdf, png"):
        write_pictures([BEFORE], tmp_path, ["gif"])
    (tmp_path / "file").write_text("")
    with pytest.raises(QBenchError, match=r"file/outliers-.*\.svg: cannot be written"):
        write_pictures([BEFORE], tmp_path / "file", ["svg"])
