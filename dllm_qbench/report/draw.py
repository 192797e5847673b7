"""Outlier maps as pictures: surfaces over channels and tokens, as arXiv 2508.14896 draws them.

For the page: PNG on a transparent ground, in colours that stand out from white and from near black alike.
For print: SVG, PDF or PNG, before and after next to each other. The maps of one linear have one scale of
height and one of colour, or the rotation's effect would not be seen. The same maps give the same bytes with
the same matplotlib. No torch.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from dllm_qbench.errors import QBenchError
from dllm_qbench.report.names import file_name
from dllm_qbench.report.outlier_maps import OutlierMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS: Final = ("svg", "pdf", "png")
COLORS: Final = ("#4c78c8", "#6a68cf", "#9a58c4", "#c84b9b", "#e2506a", "#e8602c")
"""Of the surface, from 0 up."""
LEVELS: Final = 16
"""Steps of colour: enough for the eye, and a PNG of few colours is small."""
PAGE_INK: Final = "#767b84"
"""Of axes and words on the page: no grey is further from white and from #16181d at once."""
PRINT_INK: Final = "#30343b"
_PRINT_GRID: Final = "#b4b8c0"
PAGE_BYTES: Final = 40_000
"""What a picture of the page may take; a map that needs more is drawn with fewer cells and dots."""
_GAMMA: Final = 0.75
"""Below 1: what is small beside a massive value still differs in colour."""
_PAGE_INCHES: Final = (4.4, 3.3)
_PAGE_POINTS: Final = 10.5
_PAGE_TRIES: Final = (((64, 128), 120), ((48, 96), 120), ((48, 96), 90), ((32, 64), 72))
"""Cells and dots an inch, the first that is small enough."""
_PRINT_CELLS: Final = (72, 160)
_PRINT_DPI: Final = 300


def surface_png(map: OutlierMap, top: float | None = None) -> bytes:
    """Draw one map for the page, at most :data:`PAGE_BYTES` long.

    Args:
        map: what to draw.
        top: the scale's end, by default the map's maximum; give a pair its larger one.
    """
    top = _top([map]) if top is None else top
    found = b""
    for cells, dpi in _PAGE_TRIES:
        with _settings():
            figure = _figure(_PAGE_INCHES)
            axes = figure.add_axes((-0.045, 0.03, 0.96, 1.02), projection="3d")
            _surface(axes, map, top, cells, (PAGE_INK, PAGE_INK), _PAGE_POINTS)
            found = _bytes(figure, "png", dpi=dpi, transparent=True)
        if len(found) <= PAGE_BYTES:
            break
    return found


def page_entries(maps: Sequence[OutlierMap]) -> list[dict[str, Any]]:
    """Return what the report's page shows of maps: those of one linear next to each other, before first."""
    return [
        {
            "model": one.model,
            "module": one.module,
            "kind": one.kind,
            "rotated_by": one.rotated_by,
            "maximum": one.maximum,
            "max_over_rms": one.max_over_rms,
            "tokens": one.tokens,
            "channels": one.channels,
            "png": "data:image/png;base64,"
            + base64.b64encode(surface_png(one, _top(of_one))).decode(),
            "alt": in_words(one),
        }
        for of_one in by_linear(maps)
        for one in of_one
    ]


def in_words(map: OutlierMap) -> str:
    """Say in a sentence what a map shows, for those who do not see it."""
    when = f"after {map.rotated_by}" if map.rotated_by else "before rotation"
    return (
        f"Surface of the absolute values that enter {map.module} of {map.model} {when}, over"
        f" {map.tokens} tokens and {map.channels} channels: the largest is {short(map.maximum)},"
        f" {short(map.max_over_rms)} times the root mean square."
    )


def short(value: float) -> str:
    """Write a number with three digits, one of thousands with all of its own: ``4.25``, ``5230``."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def write_pictures(
    maps: Sequence[OutlierMap], folder: str | Path, formats: Sequence[str] = ("svg", "png")
) -> list[Path]:
    """Write a picture of each linear in each format, its maps next to each other; return the files.

    Raises:
        QBenchError: an unknown format, or a file that cannot be written.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise QBenchError(
            f"pictures: format {unknown[0]!r} is unknown; expected {', '.join(FORMATS)}"
        )
    written = []
    for of_one in by_linear(maps):
        for name in formats:
            path = (
                Path(folder) / f"{file_name('outliers', of_one[0].model, of_one[0].module)}.{name}"
            )
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(side_by_side(of_one, name))
            except OSError as error:
                raise QBenchError(f"{path}: cannot be written: {error}") from error
            written.append(path)
    return written


def side_by_side(maps: Sequence[OutlierMap], form: str) -> bytes:
    """Draw the maps of one linear next to each other for print, on one scale, as a file's bytes.

    Surfaces are pixels in SVG and PDF too (tens of thousands of tiles otherwise); words and axes are not.
    """
    with _settings():
        inches = 3.6 * len(maps) + 0.4  # the last place has the words of the height
        figure = _figure((inches, 3.3))
        width = 3.6 / inches
        for place, one in enumerate(maps):
            axes: Any = figure.add_axes((place * width, 0.02, 0.96 * width, 0.92), projection="3d")
            _surface(axes, one, _top(maps), _PRINT_CELLS, (PRINT_INK, _PRINT_GRID), 8)
            axes.zaxis.labelpad = 1
            if place < len(maps) - 1:
                axes.set_zlabel("")
            when = f"after {one.rotated_by}" if one.rotated_by else "before rotation"
            figure.text(
                (place + 0.5) * width, 0.9,
                f"{when}: largest {short(one.maximum)}, {short(one.max_over_rms)} times the RMS",
                ha="center", va="top", fontsize=8.5, color=PRINT_INK,
            )  # fmt: skip
        figure.text(
            0.5, 0.98, f"{maps[0].model}, input of {maps[0].module}: {maps[0].kind} outliers",
            ha="center", va="top", fontsize=9.5, weight="bold", color=PRINT_INK,
        )  # fmt: skip
        return _bytes(figure, form, dpi=_PRINT_DPI)


def by_linear(maps: Sequence[OutlierMap]) -> list[list[OutlierMap]]:
    """Return the maps of each linear together, in the order of its first one, those before rotation first."""
    found: dict[tuple[str, str], list[OutlierMap]] = {}
    for one in maps:
        found.setdefault((one.model, one.module), []).append(one)
    return [sorted(group, key=lambda one: one.rotated_by is not None) for group in found.values()]


# --- matplotlib --------------------------------------------------------------------------------


@contextmanager
def _settings() -> Iterator[None]:
    """Matplotlib's own settings, whatever the user's file says: pictures do not depend on it."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"svg.hashsalt": "dllm_qbench", "pdf.fonttype": 42})
        yield


def _figure(inches: tuple[float, float]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches)
    FigureCanvasAgg(figure)
    return figure


def _bytes(figure: Figure, form: str, **how: Any) -> bytes:
    """Save without the date and the maker, which would differ from file to file."""
    metadata: dict[str, dict[str, Any]] = {
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
        "png": {"Software": None},
    }
    if form == "png":
        how["pil_kwargs"] = {"optimize": True}
    stream = io.BytesIO()
    figure.savefig(stream, format=form, metadata=metadata[form], **how)
    return stream.getvalue()


def _surface(
    axes: Any,
    map: OutlierMap,
    top: float,
    cells: tuple[int, int],
    inks: tuple[str, str],
    points: float,
) -> None:
    """Draw a map on 3D axes: x channel, y token, z absolute value; inks of words and of the grid."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.ticker import MaxNLocator

    z = _pooled(np.array(map.magnitudes), cells)
    x = (np.arange(z.shape[1]) + 0.5) * map.channels / z.shape[1]
    y = (np.arange(z.shape[0]) + 0.5) * map.tokens / z.shape[0]
    # A single row or column is no surface; twice the same one is.
    if len(y) == 1:
        y, z = np.array([0.0, map.tokens]), np.repeat(z, 2, axis=0)
    if len(x) == 1:
        x, z = np.array([0.0, map.channels]), np.repeat(z, 2, axis=1)
    colors = LinearSegmentedColormap.from_list("outliers", COLORS, N=LEVELS)
    axes.patch.set_alpha(0)
    axes.plot_surface(
        *np.meshgrid(x, y), z,
        facecolors=colors(PowerNorm(_GAMMA, 0, top)(_highest_corner(z))),
        rcount=len(y), ccount=len(x), linewidth=0, antialiased=False, shade=False, rasterized=True,
    )  # fmt: skip
    axes.set(xlim=(0, map.channels), ylim=(0, map.tokens), zlim=(0, top))
    axes.view_init(elev=25, azim=-57)
    axes.set_box_aspect((1.5, 1.2, 0.9), zoom=1.06)
    ink, grid = inks
    for axis, label, pad in (
        (axes.xaxis, "channel", 3), (axes.yaxis, "token", 2), (axes.zaxis, "absolute value", 5)
    ):  # fmt: skip
        axis.set_label_text(label, color=ink, fontsize=points)
        axis.labelpad = pad
        axis.set_pane_color((0, 0, 0, 0))
        axis.line.set_color(ink)
        axis._axinfo["grid"].update(color=grid, linewidth=0.4)
        axis.set_tick_params(colors=ink, labelsize=points - 1, pad=0)
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def _highest_corner(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the tile that begins at each point: a peak of one point is as bright as it is high."""
    high = z.copy()
    high[:-1] = np.maximum(high[:-1], z[1:])
    high[:, :-1] = np.maximum(high[:, :-1], high[:, 1:])
    return high


def _pooled(z: NDArray[np.float64], cells: tuple[int, int]) -> NDArray[np.float64]:
    """Join neighbours by their maximum until there are at most so many rows and columns."""
    for axis, most in enumerate(cells):
        size = z.shape[axis]
        if size > most:
            z = np.maximum.reduceat(z, [size * at // most for at in range(most)], axis=axis)
    return z


def _top(maps: Sequence[OutlierMap]) -> float:
    """End of a scale: 1 where all is 0."""
    return max(one.maximum for one in maps) or 1.0
