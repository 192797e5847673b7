"""Hadamard matrices of many orders, built from Paley's constructions and by doubling; no tables.

Orders that the models need are not powers of two: 12288 = 1024 * 12, 18944 = 128 * 148, 3584 = 128
* 28. An odd part has no Hadamard matrix of its own, so the order is split as n = 2^k * m with m a
known base order (12, 20, 28, 36, ...), as large a power of two as possible.

Source: R.E.A.C. Paley, "On orthogonal matrices", J. Math. Phys. 12 (1933): from the quadratic
residues of a field with q elements, q = 3 mod 4 gives order q + 1 (type I), q = 1 mod 4 gives
order 2 (q + 1) (type II).
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.int8]


def paley(order: int) -> Matrix | None:
    """Return a Hadamard matrix of this order with entries +1 and -1, or ``None`` where Paley gives
    none.
    """
    if order % 4:
        return None
    if _prime_power(order - 1) and (order - 1) % 4 == 3:
        return _type_one(order - 1)
    half = order // 2 - 1
    if order % 2 == 0 and half % 4 == 1 and _prime_power(half):
        return _type_two(half)
    return None


def split(n: int) -> tuple[int, int] | None:
    """Write n as ``(2^k, m)`` with m = 1 or an order that Paley gives; ``None`` where that cannot
    be done.

    >>> split(12288), split(18944), split(4096), split(6)
    ((1024, 12), (128, 148), (4096, 1), None)
    """
    if n < 1:
        raise ValueError(f"a Hadamard order must be positive, found {n}")
    power = n & -n
    if power == n:
        return n, 1
    base = n // power
    while power > 1:
        base, power = base * 2, power // 2
        if base % 4 == 0 and _has_paley(base):
            return power, base
    return None


@cache
def base_matrix(m: int) -> Matrix:
    """Return the matrix of base order m (1 or one of Paley's).

    Raises:
        ValueError: no construction is known here.
    """
    if m == 1:
        return np.ones((1, 1), dtype=np.int8)
    made = paley(m)
    if made is None:
        raise ValueError(f"no Hadamard matrix of order {m} can be built by Paley's constructions")
    return made


def _has_paley(order: int) -> bool:
    first, second = order - 1, order // 2 - 1
    return (first % 4 == 3 and _prime_power(first) is not None) or (
        second % 4 == 1 and _prime_power(second) is not None
    )


def _type_one(q: int) -> Matrix:
    """H = I + S with S = [[0, 1], [-1, Q]], skew-symmetric because -1 is no square when q = 3 mod
    4.
    """
    s = np.zeros((q + 1, q + 1), dtype=np.int8)
    s[0, 1:], s[1:, 0], s[1:, 1:] = 1, -1, _residues(q)
    return (s + np.eye(q + 1, dtype=np.int8)).astype(np.int8)


def _type_two(q: int) -> Matrix:
    """Replace 0 and +-1 of the symmetric conference matrix [[0, 1], [1, Q]] by 2 x 2 blocks."""
    c = np.zeros((q + 1, q + 1), dtype=np.int8)
    c[0, 1:], c[1:, 0], c[1:, 1:] = 1, 1, _residues(q)
    sign, diagonal = (
        np.array([[1, 1], [1, -1]], dtype=np.int8),
        np.array([[1, -1], [-1, -1]], dtype=np.int8),
    )
    made: Matrix = np.kron(c, sign) + np.kron(np.eye(q + 1, dtype=np.int8), diagonal)
    return made


def _prime_power(q: int) -> tuple[int, int] | None:
    """Return (p, e) with q = p^e and p prime, or ``None``."""
    if q < 2:
        return None
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    e = 0
    while q % p == 0:
        q, e = q // p, e + 1
    return (p, e) if q == 1 else None


def _residues(q: int) -> Matrix:
    """Return Q with Q[i, j] = chi(a_i - a_j): 1 for squares of the field, -1 for the others, 0 on
    the diagonal.
    """
    found = _prime_power(q)
    assert found is not None
    p, e = found
    elements = list(product(range(p), repeat=e))  # a polynomial's coefficients, lowest power first
    modulus = _irreducible(p, e)
    squares = {_multiply(a, a, modulus, p) for a in elements if any(a)}
    made = np.zeros((q, q), dtype=np.int8)
    for i, a in enumerate(elements):
        for j, b in enumerate(elements):
            if i != j:
                made[i, j] = (
                    1 if tuple((x - y) % p for x, y in zip(a, b, strict=True)) in squares else -1
                )
    return made


def _multiply(
    a: tuple[int, ...], b: tuple[int, ...], modulus: tuple[int, ...], p: int
) -> tuple[int, ...]:
    """Multiply two field elements: polynomials over the integers mod p, reduced by the monic
    ``modulus``.
    """
    e = len(modulus) - 1
    raw = [0] * (2 * e - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            raw[i + j] += x * y
    for top in range(2 * e - 2, e - 1, -1):
        factor = raw[top]
        for k in range(e + 1):
            raw[top - e + k] -= factor * modulus[k]
    return tuple(value % p for value in raw[:e])


def _irreducible(p: int, e: int) -> tuple[int, ...]:
    """Return a monic polynomial of degree e without a factor mod p (lowest power first); fields
    here are small.
    """
    if e == 1:
        return (0, 1)
    for low in product(range(p), repeat=e):
        modulus = (*low, 1)
        nonzero = [a for a in product(range(p), repeat=e) if any(a)]
        # a ring without zero divisors is a field: no product of two nonzero remainders may vanish
        if all(any(_multiply(a, b, modulus, p)) for a in nonzero for b in nonzero if a <= b):
            return modulus
    raise AssertionError(f"every prime power has a field; none found for {p}^{e}")
