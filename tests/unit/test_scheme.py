"""Schemes: the grammar, and messages for what lies outside it."""

from __future__ import annotations

import itertools

import pytest

from dllm_qbench.errors import SchemeError
from dllm_qbench.quant.scheme import ACT_BITS, WEIGHT_BITS, Scheme

ALL = [
    Scheme(*parts)
    for parts in itertools.product(WEIGHT_BITS, ACT_BITS, (None, 1, 64, 128), (None, True, False))
]


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("W4A16-g64", Scheme(4, 16, 64, None)),
        ("W3A16-g128-sym", Scheme(3, 16, 128, True)),
        ("W8A8", Scheme(8, 8)),
        ("W4A4-asym", Scheme(4, 4, None, False)),
        ("W16A16", Scheme(16, 16)),
    ],
)
def test_parse_reads_each_part(text: str, scheme: Scheme) -> None:
    assert Scheme.parse(text) == scheme
    assert str(scheme) == text


def test_every_scheme_survives_the_way_through_its_string() -> None:
    assert [Scheme.parse(str(scheme)) for scheme in ALL] == ALL
    assert len({str(scheme) for scheme in ALL}) == len(ALL)


def test_parse_passes_a_scheme_through() -> None:
    assert Scheme.parse(ALL[0]) is ALL[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("W4A5", "scheme 'W4A5': activations must be 4, 8 or 16 bits"),
        ("W9A16", "scheme 'W9A16': weights must be 2 to 8 or 16 bits"),
        ("W1A16", "scheme 'W1A16': weights must be 2 to 8 or 16 bits"),
        ("W4A16-g0", "scheme 'W4A16-g0': a group must hold at least 1 weight"),
        ("W04A16", "scheme 'W04A16': write it 'W4A16'"),
        ("w4a16", "expected W<bits>A<bits>"),
        ("W4A16-g64-symmetric", "expected W<bits>A<bits>"),
        ("W4A16-sym-g64", "expected W<bits>A<bits>"),
        ("W4A16 ", "expected W<bits>A<bits>"),
        ("W4A16\n", "expected W<bits>A<bits>"),
        ("W٤A16", "expected W<bits>A<bits>"),
        ("", "expected W<bits>A<bits>"),
        (4, "expected W<bits>A<bits>"),
    ],
)
def test_what_the_grammar_excludes_is_named(text: str, message: str) -> None:
    with pytest.raises(SchemeError) as caught:
        Scheme.parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "parts", [(4.0, 16), (True, 16), (4, 5), (4, 16, -1), (4, 16, 2.5), (4, 16, None, "sym")]
)
def test_constructor_checks_what_parse_checks(parts: tuple[object, ...]) -> None:
    with pytest.raises(SchemeError):
        Scheme(*parts)  # type: ignore[arg-type]


def test_method_decides_symmetry_only_where_the_scheme_is_silent() -> None:
    assert [Scheme(4, 16, None, own).is_symmetric(True) for own in (None, True, False)] == [
        True,
        True,
        False,
    ]
