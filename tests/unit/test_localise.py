"""Localisation from two profiles: which module is named, for what reason, and who contributes."""

from __future__ import annotations

import pytest

from dllm_qbench.verdict.localise import Contributor, locate

TAPS = (
    "input_layernorm q_proj k_proj v_proj self_attn o_proj post_attention_layernorm"
    " gate_proj up_proj mlp down_proj"
).split()
LINEARS = [tap for tap in TAPS if tap.endswith("_proj")]
LAYER = {f"{block}.{tap}": 20.0 for block in (0, 1) for tap in TAPS} | {"lm_head": 18.0}
LOCAL = {f"{block}.{linear}": 22.0 for block in (0, 1) for linear in LINEARS}


def from_on(start: str, by: float) -> dict[str, float]:
    """The accumulated profile with everything from one tap on moved."""
    names = list(LAYER)
    moved = names[names.index(start) :]
    return {name: value + by * (name in moved) for name, value in LAYER.items()}


def test_nothing_moved_names_nothing() -> None:
    found = locate(LAYER, from_on("0.q_proj", -0.9), LOCAL, LOCAL, 1.0)
    assert found.first is None
    assert found.by == "nothing"
    assert found.contributors == ()
    assert found.why == "every module's SQNR is within 1 dB of the baseline's"


@pytest.mark.parametrize("by", [-6.0, 6.0])
@pytest.mark.parametrize("linear", list(LOCAL))
def test_own_error_names_the_linear_whether_it_grew_or_shrank(linear: str, by: float) -> None:
    found = locate(LAYER, from_on(linear, by), LOCAL, LOCAL | {linear: 22.0 + by}, 1.0)
    assert found.first == linear
    assert found.by == "own error"
    (only,) = found.contributors
    assert only == Contributor(linear, 1.0, 22.0, 22.0 + by)


def test_own_error_of_a_parallel_linear_beats_the_accumulated_one_after_it() -> None:
    """A fault in k moves the attention's tap; one that the accumulated profile hides moves nothing."""
    own = LOCAL | {"0.k_proj": 10.0}
    assert locate(LAYER, from_on("0.self_attn", -6), LOCAL, own, 1.0).first == "0.k_proj"
    assert locate(LAYER, LAYER, LOCAL, own, 1.0).first == "0.k_proj"


def test_earliest_of_several_own_errors_is_named_and_the_largest_contributes_most() -> None:
    """Later linears are calibrated on what the broken one puts out, and may move further than it."""
    own = LOCAL | {"0.down_proj": 20.0, "1.q_proj": 12.0, "1.o_proj": 15.0, "1.up_proj": 20.5}
    found = locate(LAYER, from_on("0.down_proj", -2), LOCAL, own, 1.0)
    assert found.first == "0.down_proj"
    named = [contributor.module for contributor in found.contributors]
    assert named == ["1.q_proj", "1.o_proj", "0.down_proj"]
    shares = [contributor.share for contributor in found.contributors]
    # 10^-1.2 - 10^-2.2 of (that + 10^-1.5 - 10^-2.2 + 10^-2 - 10^-2.2 + 10^-2.05 - 10^-2.2)
    assert shares[0] == pytest.approx(
        0.0567862 / (0.0567862 + 0.0253132 + 0.0036904 + 0.0026029), rel=1e-3
    )
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("tap", ["0.input_layernorm", "1.self_attn", "1.mlp", "lm_head"])
def test_fault_outside_the_linears_is_named_by_its_tap(tap: str) -> None:
    found = locate(LAYER, from_on(tap, -6), LOCAL, LOCAL, 1.0)
    assert found.first == tap
    assert found.by == "accumulated error"
    assert found.contributors == ()  # no linear's own error moved
    assert "no linear up to it errs more on its own: look at what " in found.why


def test_tap_before_the_first_own_error_wins() -> None:
    """A wrong norm: the linears behind it are calibrated on wrong inputs, and move as well."""
    own = LOCAL | {"1.q_proj": 18.0, "1.o_proj": 14.0}
    assert (
        locate(LAYER, from_on("1.input_layernorm", -8), LOCAL, own, 1.0).first
        == "1.input_layernorm"
    )


def test_own_error_just_within_tolerance_explains_a_tap_beyond_it() -> None:
    seen = from_on("0.self_attn", -1.3) | {"0.q_proj": 19.3}
    assert locate(LAYER, seen, LOCAL, LOCAL | {"0.q_proj": 21.3}, 1.0).first == "0.q_proj"
    assert locate(LAYER, seen, LOCAL, LOCAL | {"0.q_proj": 21.6}, 1.0).first == "0.self_attn"
    # one that stands behind the tap explains nothing
    assert locate(LAYER, seen, LOCAL, LOCAL | {"0.o_proj": 21.3}, 1.0).first == "0.self_attn"


def test_contributors_are_held_against_the_tolerance_of_own_errors() -> None:
    own = LOCAL | {"0.k_proj": 20.8, "1.k_proj": 21.2}
    found = locate(LAYER, LAYER, LOCAL, own, 1.5, 1.0)
    assert found.first == "0.k_proj"
    assert [contributor.module for contributor in found.contributors] == ["0.k_proj"]


def test_profiles_that_were_not_measured() -> None:
    nothing = locate({}, {}, {}, {}, 1.0)
    assert nothing.first is None
    assert nothing.why == "no SQNR profile to compare with a baseline's"
    assert locate({}, LAYER, {}, LOCAL, 1.0) == nothing
    own = locate({}, LAYER, LOCAL, LOCAL | {"1.o_proj": 2.0}, 1.0)
    assert (own.first, own.by) == ("1.o_proj", "own error")
    total = locate(LAYER, from_on("1.o_proj", -5), {}, LOCAL, 1.0)
    assert (total.first, total.by) == ("1.o_proj", "accumulated error")
    assert [c.module for c in total.contributors][:1] == ["lm_head"]


def test_baseline_of_linears_only_is_compared_where_it_can_be() -> None:
    """What baselines held before there were taps."""
    old = {name: LAYER[name] for name in LOCAL}
    seen = from_on("1.input_layernorm", -6)
    assert locate(old, seen, {}, LOCAL, 1.0).first == "1.q_proj"


def test_texts_carry_the_numbers() -> None:
    found = locate(LAYER, from_on("1.o_proj", -5), LOCAL, LOCAL | {"1.o_proj": 2.0}, 1.0)
    assert found.why == (
        "fed with full precision's inputs it is at 2.0 dB, 22.0 in the baseline;"
        " all before it is within 1 dB"
    )
    assert str(found.contributors[0]) == "1.o_proj: 2.0 dB (baseline 22.0), 100 % of the change"
    tap = locate(LAYER, from_on("1.mlp", -5), LOCAL, LOCAL, 1.0)
    assert tap.why == (
        "what reaches it is at 15.0 dB, 20.0 in the baseline; no linear up to it errs more on its"
        " own: look at what stands between it and 1.up_proj"
    )
