"""Codes come out of words as they went in, whichever library or code put them there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_qbench.checkpoints.words import unpack_words, words_for
from tests.helpers.published_writers import words_of


@given(
    bits=st.integers(1, 8),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70)),
    seed=st.integers(0, 1000),
)
def test_codes_come_back_from_words_that_were_written_bit_by_bit(
    bits: int, shape: tuple[int, int], seed: int
) -> None:
    codes = torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(seed))
    words = words_of(codes, bits)
    assert words.shape[1] == words_for(shape[1], bits)
    assert torch.equal(unpack_words(words, bits, shape[1]).long(), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_words_are_those_of_compressed_tensors(bits: int) -> None:
    theirs = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    low = -(2 ** (bits - 1))
    codes = torch.randint(low, -low, (2, 1000), generator=torch.Generator().manual_seed(bits))
    words = theirs.pack_to_int32(codes.to(torch.int8), bits)
    if 32 % bits and words.shape[1] == -(-1000 // (32 // bits)):
        pytest.skip("before version 0.18 no code lies in two words")
    assert torch.equal(words, words_of(codes - low, bits))
    assert torch.equal(unpack_words(words.contiguous(), bits, 1000) + low, codes.to(torch.int32))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), "expected int32"),
        (torch.zeros(3, dtype=torch.int32), "expected int32"),
        (torch.zeros(2, 4, dtype=torch.int32), "4 words a row; 20 codes of 4 bits take 3"),
    ],
)
def test_words_of_another_shape_are_refused(words: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        unpack_words(words, 4, 20)
