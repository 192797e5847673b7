"""Magnitudes of what a linear reads, tokens by channels, before and after a rotation.

The pictures of arXiv 2508.14896, section 3: *massive* outliers are extreme values on few tokens, *normal*
ones are channels that are large over all tokens. "After" is what the same linear reads on the same tokens in
the model that a method has rotated. By default nothing is rounded there, so that what is seen is the
rotation's doing alone, and making it takes seconds; with ``scheme="W4A4"`` the rounding of everything before
the linear is in it too.

torch is imported where a model is run: reading, writing and drawing maps needs none.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dllm_qbench.errors import QBenchError
from dllm_qbench.jsonfiles import parse_json, reject_non_finite, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from dllm_qbench.models.lm import DiffusionLM
    from dllm_qbench.quant.calibration import Calibration

VERSION: Final = 1
MASSIVE, NORMAL = "massive", "normal"
KINDS: Final = (MASSIVE, NORMAL)
_DIGITS: Final = 5
"""Significant digits that a map keeps: more are in no picture, and would make files longer."""
_CHOOSING: Final = 256
"""Tokens by which inputs are chosen: all inputs of an 8B model are held for them, 0.8 GB."""


@dataclass(frozen=True)
class OutlierMap:
    """What one linear reads, as absolute values.

    Attributes:
        model: the model's name; ``module``: the linear's, ``model.layers.0.mlp.down_proj``.
        kind: ``massive`` or ``normal``, for what the input was chosen, or has more of.
        rotated_by: ``None`` before; after, the method.
        tokens, channels: how many of each were read.
        magnitudes: rows of tokens by columns of channels; where fewer than were read, each is the maximum of
            neighbours.
        maximum: over all; ``max_over_rms``: in units of the root mean square; ``kurtosis``: of the values
            themselves, 3 for a normal distribution. All of them before neighbours were joined.
    """

    model: str
    module: str
    kind: str
    rotated_by: str | None
    tokens: int
    channels: int
    magnitudes: tuple[tuple[float, ...], ...]
    maximum: float
    max_over_rms: float
    kurtosis: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        data = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return data | {"magnitudes": [list(row) for row in self.magnitudes]}

    @classmethod
    def from_dict(cls, data: object, place: str) -> OutlierMap:
        """Undo :meth:`to_dict`; ``QBenchError`` names the place and the field that is not as it should be."""
        if not isinstance(data, Mapping):
            raise QBenchError(f"{place}: expected an object, found {type(data).__name__}")
        names = [entry.name for entry in fields(cls)]
        if missing := [name for name in names if name not in data]:
            raise QBenchError(f"{place}: field {missing[0]!r} is missing")
        if unknown := sorted(set(data) - {*names}):
            raise QBenchError(f"{place}: unknown field {unknown[0]!r}")
        reject_non_finite(data, place)
        _check(data, place)
        rows = tuple(tuple(map(float, row)) for row in data["magnitudes"])
        return cls(**{**data, "magnitudes": rows})


def outlier_maps(
    lm: DiffusionLM,
    method: str = "quarot",
    inputs: Sequence[str] | None = None,
    tokens: int = 96,
    channels: int = 256,
    seed: int = 0,
    *,
    mask_ratio: float = 0.5,
    ids: Tensor | None = None,
    scheme: str = "W16A16",
    calibration: Calibration | None = None,
    rotated: DiffusionLM | None = None,
) -> tuple[OutlierMap, ...]:
    """Map what linears of a full-precision model read, and what they read after a rotation.

    Args:
        lm: full precision; not changed.
        method: that rotates, ``"quarot"`` or ``"duquant"``.
        inputs: full names of linears; by default two: the input whose largest token stands out most from
            the median token (massive outliers), and, of the inputs at other places in a block, that whose
            largest channel stands out most from the median channel (normal ones).
        tokens, channels: the most of a map. Neighbours are joined by their maximum where there are more; of
            the default texts, only as many tokens are read as are shown.
        seed: of the texts and of the masks.
        mask_ratio: share of the tokens after a text's question (of all, with ``ids``) that is ``[MASK]``.
        ids: canvases ``[B, T]`` of your own, without masks.
        scheme: what the rotated model is quantized to, with ``calibration`` (by default the method's own).
        rotated: that model, if it is there already; the three are then not looked at.

    Returns:
        For each input the map before and, behind it, the map after; massive ones first by default.

    Raises:
        QBenchError: an unknown linear, a model that is quantized, a method that rotates nothing there.
        ValueError: the model has no tokenizer and ``ids`` is not given, or a size below 1.
    """
    from dllm_qbench.evaluation.outliers import canvases
    from dllm_qbench.quant.quantize import quantize

    if tokens < 1 or channels < 1:
        raise ValueError(
            f"outlier maps of {tokens} tokens by {channels} channels: at least 1 of each"
        )
    if lm.recipe is not None:
        raise QBenchError(f"outlier maps: {lm.name} is quantized; give the full-precision model")
    _check_names(lm, inputs)
    rows = canvases(lm, ids, mask_ratio, seed)
    limit = None if ids is not None else tokens
    rows = _first(rows, limit)
    kinds = _kinds(lm, rows, inputs)
    before = _read(lm, rows, kinds, limit)
    after_lm = quantize(lm, method, scheme, calibration) if rotated is None else rotated
    by = str((after_lm.recipe or {}).get("method", method))
    _check_rotates(after_lm, kinds, by)
    after = _read(after_lm, rows, kinds, limit)
    return tuple(
        _map(lm.name, name, kind, whose, x[name], (tokens, channels))
        for name, kind in kinds.items()
        for whose, x in ((None, before), (by, after))
    )


def write_maps(maps: Iterable[OutlierMap], path: str | Path) -> None:
    """Write maps to a JSON file, atomically, one a line."""
    lines = ",\n".join(json.dumps(one.to_dict(), allow_nan=False) for one in maps)
    write_atomic(path, f'{{"outlier_maps_version": {VERSION}, "maps": [\n{lines}\n]}}\n')


def read_maps(path: str | Path) -> tuple[OutlierMap, ...]:
    """Read what :func:`write_maps` wrote; ``QBenchError`` names the file and the field."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QBenchError(f"{path}: cannot be read: {error}") from error
    data = parse_json(text, str(path))
    if not isinstance(data, Mapping) or "outlier_maps_version" not in data:
        raise QBenchError(
            f"{path}: field 'outlier_maps_version' is missing: no file of outlier maps; make one with:"
            " qbench figures --outliers MODEL"
        )
    if data["outlier_maps_version"] != VERSION:
        raise QBenchError(
            f"{path}: field 'outlier_maps_version' is {data['outlier_maps_version']!r}, expected {VERSION}:"
            " make the maps anew"
        )
    if not isinstance(data.get("maps"), list):
        raise QBenchError(f"{path}: field 'maps' is missing, or no list")
    return tuple(
        OutlierMap.from_dict(one, f"{path}: maps[{at}]") for at, one in enumerate(data["maps"])
    )


# --- reading a model ---------------------------------------------------------------------------


def _check_names(lm: DiffusionLM, inputs: Sequence[str] | None) -> None:
    from dllm_qbench.quant.layers import target_names

    known = target_names(lm.model)
    for name in inputs or ():
        if name not in known:
            near = get_close_matches(name, known, 3, 0.0)
            raise QBenchError(
                f"outlier maps: {lm.name} has no linear {name!r} in its blocks; like it:"
                f" {', '.join(near)}"
            )


def _check_rotates(lm: DiffusionLM, names: Iterable[str], method: str) -> None:
    for name in names:
        layer: Any = lm.model.get_submodule(name)
        if (
            getattr(layer, "transform", None) is None
            and getattr(layer, "input_rotation", None) is None
        ):
            raise QBenchError(
                f"outlier maps: {method} rotates nothing at {name} of {lm.name}; methods that do:"
                " quarot, duquant"
            )


def _first(rows: Sequence[Tensor], tokens: int | None) -> list[Tensor]:
    """As many canvases as so many tokens need."""
    found: list[Tensor] = []
    for row in rows:
        if tokens is not None and sum(len(one) for one in found) >= tokens:
            break
        found.append(row)
    return found


def _kinds(lm: DiffusionLM, rows: Sequence[Tensor], inputs: Sequence[str] | None) -> dict[str, str]:
    """The inputs to map, and what each shows."""
    from dllm_qbench.evaluation.outliers import NAMED_BY, ratios
    from dllm_qbench.quant.layers import target_names

    names = inputs
    if names is None:
        names = [name for name in target_names(lm.model) if _leaf(name) in NAMED_BY]
    read = _read(lm, _first(rows, _CHOOSING), names, _CHOOSING)
    found = {name: ratios(read[name].abs()) for name in names}
    if inputs is not None:
        return {name: MASSIVE if by[0] >= by[1] else NORMAL for name, by in found.items()}
    massive = max(found, key=lambda name: found[name][0])
    others = [name for name in found if _leaf(name) != _leaf(massive)]
    return {massive: MASSIVE, max(others, key=lambda name: found[name][1]): NORMAL}


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _read(
    lm: DiffusionLM, rows: Sequence[Tensor], names: Iterable[str], tokens: int | None
) -> dict[str, Tensor]:
    """What each linear reads ``[N, D]``, the first ``tokens`` of it, on the CPU."""
    import torch

    from dllm_qbench.evaluation.outliers import each_input

    seen: dict[str, list[Tensor]] = {}
    each_input(
        lm, rows, lambda name, x: seen.setdefault(name, []).append(x.cpu()), frozenset(names)
    )
    return {name: torch.cat(parts)[:tokens] for name, parts in seen.items()}


def _map(
    model: str, module: str, kind: str, by: str | None, x_ND: Tensor, most: tuple[int, int]
) -> OutlierMap:
    from dllm_qbench.evaluation.outliers import statistics

    figures = statistics(x_ND)
    reject_non_finite(
        {name: figures[name] for name in ("max", "max_over_rms", "kurtosis")},
        f"outlier maps: {model}: {module}",
    )
    size = _pooled(_pooled(x_ND.abs(), most[0]).T, most[1]).T
    return OutlierMap(
        model,
        module,
        kind,
        by,
        len(x_ND),
        x_ND.shape[1],
        tuple(tuple(_digits(value) for value in row) for row in size.tolist()),
        _digits(figures["max"]),
        _digits(figures["max_over_rms"]),
        _digits(figures["kurtosis"]),
    )


def _pooled(x_ND: Tensor, most: int) -> Tensor:
    """Join neighbouring rows by their maximum until there are at most so many."""
    import torch

    if len(x_ND) <= most:
        return x_ND
    edges = [len(x_ND) * at // most for at in range(most + 1)]
    return torch.stack([x_ND[low:high].amax(0) for low, high in itertools.pairwise(edges)])


def _digits(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


# --- reading a file ----------------------------------------------------------------------------


def _check(data: Mapping[str, Any], place: str) -> None:
    for name in ("model", "module"):
        _want(isinstance(data[name], str) and data[name], data, name, "text", place)
    _want(data["kind"] in KINDS, data, "kind", " or ".join(KINDS), place)
    by = data["rotated_by"]
    _want(by is None or (isinstance(by, str) and by), data, "rotated_by", "text or null", place)
    for name in ("tokens", "channels"):
        _want(type(data[name]) is int and data[name] > 0, data, name, "an integer above 0", place)
    for name in ("maximum", "max_over_rms", "kurtosis"):
        _want(_size(data[name]), data, name, "a number, at least 0", place)
    rows = data["magnitudes"]
    _want(isinstance(rows, list) and rows, data, "magnitudes", "a list of rows", place)
    for at, row in enumerate(rows):
        if not isinstance(row, list) or not row or not all(map(_size, row)):
            raise QBenchError(
                f"{place}: field 'magnitudes'[{at}]: expected numbers, none of them below 0"
            )
        if len(row) != len(rows[0]):
            raise QBenchError(
                f"{place}: field 'magnitudes'[{at}] has {len(row)} channels, row 0 has {len(rows[0])}"
            )
    for name, shown in (("tokens", len(rows)), ("channels", len(rows[0]))):
        if data[name] < shown:
            raise QBenchError(
                f"{place}: field {name!r} is {data[name]}, but magnitudes shows {shown}"
            )
    if data["maximum"] != max(map(max, rows)):
        raise QBenchError(
            f"{place}: field 'maximum' is {data['maximum']}, but the largest of magnitudes is"
            f" {max(map(max, rows))}"
        )


def _size(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _want(holds: object, data: Mapping[str, Any], name: str, expected: str, place: str) -> None:
    if not holds:
        raise QBenchError(f"{place}: field {name!r} is {data[name]!r:.60}, expected {expected}")
