"""Integer codes in 32-bit words, as published checkpoints hold them.

Codes are laid end to end from a word's lowest bit. Where their width does not divide 32, as 3 bits do
not, a code begins in one word and ends in the next: 32 codes of b bits fill b words.

Shapes: N rows, W words, C codes of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32
_CODES_AT_ONCE = 2**22  # in 64 bits, a few times over


def words_for(codes: int, bits: int) -> int:
    """Return how many words hold so many codes."""
    return -(-codes * bits // WORD)


def unpack_words(words_NW: Tensor, bits: int, codes: int) -> Tensor:
    """Return the codes of each row, int32 ``[N, C]`` in 0..2^bits - 1.

    Args:
        words_NW: int32.
        bits: 1 to 8.
        codes: C; what the last word holds beyond is left out.

    Raises:
        ValueError: the rows are not int32 words, or not as many as C codes take.
    """
    if words_NW.dtype != torch.int32 or words_NW.dim() != 2:
        raise ValueError(
            f"packed codes are {words_NW.dtype} of shape {list(words_NW.shape)};"
            " expected int32 [rows, words]"
        )
    if words_NW.shape[1] != words_for(codes, bits):
        raise ValueError(
            f"{words_NW.shape[1]} words a row; {codes} codes of {bits} bits take"
            f" {words_for(codes, bits)}"
        )
    starts_C = torch.arange(codes, device=words_NW.device) * bits
    first_C, shift_C = starts_C // WORD, starts_C % WORD
    last_C = (starts_C + bits - 1) // WORD
    out_NC = torch.empty(len(words_NW), codes, dtype=torch.int32, device=words_NW.device)
    rows = max(1, _CODES_AT_ONCE // max(1, codes))
    for start in range(0, len(words_NW), rows):
        # In 64 bits, so that two neighbouring words make one number; the mask undoes the sign of either.
        wide_NW = words_NW[start : start + rows].long() & (2**WORD - 1)
        pairs_NC = wide_NW[:, first_C] | (wide_NW[:, last_C] << WORD) * (last_C > first_C)
        out_NC[start : start + rows] = (pairs_NC >> shift_C) & (2**bits - 1)
    return out_NC
