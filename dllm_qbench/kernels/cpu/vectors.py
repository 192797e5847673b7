"""Steps on whole vector registers that a compiler does not find by itself, as LLVM instructions.

Each function below becomes a straight run of instructions where it is called, on registers of L
lanes. Arrays are flat and C-contiguous, offsets count elements, and nobody checks them.

A butterfly turns (a, b) into (a + b, a - b). ``within`` and ``across`` do the stages of distance
1, 2, 4, ... one after the other, each value rounded once a stage, as the reference does.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import alloca_once_value, for_range
from numba.core.errors import TypingError

from dllm_qbench.kernels.cpu.compiled import instruction
from dllm_qbench.kernels.cpu.registers import Emitter, Values

_INDEX = ir.IntType(64)
_AHEAD = 4096  # elements: what is read now was asked for about a microsecond ago


@instruction
def within(typing: Any, dst: Any, d: Any, src: Any, s: Any, factor: Any, bits: Any) -> Any:
    """``within(dst, d, src, s, factor, bits)``: do the first ``bits`` stages (a literal) on 2^bits
    neighbours, at least L, and multiply by ``factor``.

    Stages inside a register are one shuffle and one sum each; the next ones are between registers.
    """
    count = _literal(bits)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        write = Emitter(context, builder, dst)
        to, source = write.pointer(dst, args[0]), write.pointer(src, args[2])
        inner = min(count, write.lanes.bit_length() - 1)
        offsets = [_INDEX(write.lanes * k) for k in range(1 << (count - inner))]
        values = []
        for offset in offsets:
            index = builder.add(args[3], offset)
            write.fetch(source, builder.add(index, _INDEX(_AHEAD)))
            values.append(write.load(source, index))
        values = write.between([write.in_lanes(v, inner) for v in values])
        scale = write.spread(args[4])
        for v, offset in zip(values, offsets, strict=True):
            write.store(builder.fmul(v, scale), to, builder.add(args[1], offset))
        return context.get_dummy_value()

    return types.void(dst, types.int64, src, types.int64, dst.dtype, bits), emit


@instruction
def across(typing: Any, data: Any, at: Any, step: Any, factor: Any, bits: Any) -> Any:
    """``across(data, at, step, factor, bits)``: do ``bits`` stages (a literal) in place, on L lanes of
    2^bits places that lie ``step`` apart.
    """
    count = _literal(bits)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        write = Emitter(context, builder, data)
        place = write.pointer(data, args[0])
        places = [args[1]]
        for _ in range((1 << count) - 1):
            places.append(builder.add(places[-1], args[2]))
        values = write.between([write.load(place, index) for index in places])
        scale = write.spread(args[3])
        for v, index in zip(values, places, strict=True):
            write.store(builder.fmul(v, scale), place, index)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.int64, data.dtype, bits), emit


@instruction
def columns(typing: Any, dst: Any, d: Any, step: Any, src: Any, s: Any, row: Any) -> Any:
    """``columns(dst, d, step, src, s, row)``: turn four columns of L rows, ``row`` apart, into four
    registers, ``step`` apart.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        write = Emitter(context, builder, dst)
        to, source = write.pointer(dst, args[0]), write.pointer(src, args[3])
        rows = []
        index = args[4]
        for _ in range(write.lanes):
            rows.append(write.load(source, index, 4))
            index = builder.add(index, args[5])
        # Four registers, register r of rows r, 4 + r, 8 + r, ...; then their 4 x 4 blocks are turned.
        wide = [_join(write, rows[r::4]) for r in range(4)]
        index = args[1]
        for v in _turned(write, wide):
            write.store(v, to, index)
            index = builder.add(index, args[2])
        return context.get_dummy_value()

    return types.void(dst, types.int64, types.int64, src, types.int64, types.int64), emit


@instruction
def rows(typing: Any, dst: Any, d: Any, row: Any, src: Any, s: Any, step: Any) -> Any:
    """``rows(dst, d, row, src, s, step)``: undo :func:`columns`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        write = Emitter(context, builder, dst)
        to, source = write.pointer(dst, args[0]), write.pointer(src, args[3])
        wide, index = [], args[4]
        for _ in range(4):
            wide.append(write.load(source, index))
            index = builder.add(index, args[5])
        turned = _turned(write, wide)
        index = args[1]
        for lane in range(write.lanes):
            block = [lane // 4 * 4 + k for k in range(4)]
            write.store(write.shuffle(turned[lane % 4], turned[lane % 4], block), to, index, 4)
            index = builder.add(index, args[2])
        return context.get_dummy_value()

    return types.void(dst, types.int64, types.int64, src, types.int64, types.int64), emit


@instruction
def signed_sums(typing: Any, table: Any, t: Any, src: Any, s: Any, step: Any) -> Any:
    """``signed_sums(table, t, src, s, step)``: write the 16 sums of four registers with all signs.

    Bit i of an entry's number says that register i is subtracted.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        write = Emitter(context, builder, table)
        to, source = write.pointer(table, args[0]), write.pointer(src, args[2])
        parts, index = [], args[3]
        for _ in range(4):
            parts.append(write.load(source, index))
            index = builder.add(index, args[4])
        a, b, c, d = parts
        low, high = (
            [builder.fadd(p, q), builder.fsub(q, p), builder.fsub(p, q)]
            for p, q in ((a, b), (c, d))
        )
        low, high = [*low, builder.fneg(low[0])], [*high, builder.fneg(high[0])]
        for k in range(16):
            made = builder.fadd(low[k & 3], high[k >> 2])
            write.store(made, to, builder.add(args[1], _INDEX(k * write.lanes)))
        return context.get_dummy_value()

    return types.void(table, types.int64, src, types.int64, types.int64), emit


@instruction
def pairs(typing: Any, sums: Any, differences: Any, d: Any, src: Any, s: Any) -> Any:
    """``pairs(sums, differences, d, src, s)``: write the sum and the difference of two registers."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        write = Emitter(context, builder, sums)
        plus, minus = write.pointer(sums, args[0]), write.pointer(differences, args[1])
        source = write.pointer(src, args[3])
        a = write.load(source, args[4])
        b = write.load(source, builder.add(args[4], _INDEX(write.lanes)))
        write.store(builder.fadd(a, b), plus, args[2])
        write.store(builder.fsub(a, b), minus, args[2])
        return context.get_dummy_value()

    return types.void(sums, differences, types.int64, src, types.int64), emit


@instruction
def looked_up(
    typing: Any,
    dst: Any,
    d: Any,
    step: Any,
    start: Any,
    s: Any,
    hop: Any,
    factor: Any,
    table: Any,
    places: Any,
    o: Any,
    groups: Any,
) -> Any:
    """Write four registers, ``step`` apart: sums over ``groups`` entries of a table each.

    ``looked_up(dst, d, step, start, s, hop, factor, table, places, o, groups)``: a sum starts from a
    register of ``start``, ``hop`` apart, times ``factor``. The entries' offsets are int32
    ``places[o:]``, ``[groups, 4]``.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        write = Emitter(context, builder, dst)
        to, begin = write.pointer(dst, args[0]), write.pointer(start, args[3])
        sums, offsets = write.pointer(table, args[7]), write.pointer(places, args[8])
        scale, index, totals = write.spread(args[6]), args[4], []
        for _ in range(4):
            first = builder.fmul(write.load(begin, index), scale)
            totals.append(alloca_once_value(builder, first))  # type: ignore[no-untyped-call]
            index = builder.add(index, args[5])
        with for_range(builder, args[10]) as loop:
            place = builder.add(args[9], builder.mul(loop.index, _INDEX(4)))
            for k, total in enumerate(totals):
                own = builder.load(builder.gep(offsets, [builder.add(place, _INDEX(k))]))
                found = write.load(sums, builder.sext(own, _INDEX))
                builder.store(builder.fadd(builder.load(total), found), total)
        index = args[1]
        for total in totals:
            write.store(builder.load(total), to, index)
            index = builder.add(index, args[2])
        return context.get_dummy_value()

    i64 = types.int64
    taken = (dst, i64, i64, start, i64, i64, dst.dtype, table, places, i64, i64)
    return types.void(*taken), emit


@instruction
def ask(typing: Any, src: Any, s: Any, dst: Any, d: Any) -> Any:
    """``ask(src, s, dst, d)``: say that four registers of ``src`` will be read, and of ``dst`` written."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        write = Emitter(context, builder, src)
        source, to = write.pointer(src, args[0]), write.pointer(dst, args[2])
        for k in range(4):
            offset = _INDEX(k * write.lanes)
            write.fetch(source, builder.add(args[1], offset))
            write.fetch(to, builder.add(args[3], offset), write=True)
        return context.get_dummy_value()

    return types.void(src, types.int64, dst, types.int64), emit


def _literal(argument: Any) -> int:
    if not isinstance(argument, types.IntegerLiteral):
        raise TypingError("the number of stages is part of the code: write it as a number")
    return int(argument.literal_value)


def _join(write: Emitter, parts: Values) -> Any:
    while len(parts) > 1:
        lanes = list(range(2 * parts[0].type.count))
        parts = [write.shuffle(a, b, lanes) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _turned(write: Emitter, wide: Values) -> Values:
    """Transpose the 4 x 4 blocks that lie beside each other in four registers."""
    n = write.lanes
    for h in (1, 2):
        low = [lane if not lane & h else n + (lane ^ h) for lane in range(n)]
        high = [lane ^ h if not lane & h else n + lane for lane in range(n)]
        made = list(wide)
        for i in range(4):
            if not i & h:
                made[i] = write.shuffle(wide[i], wide[i | h], low)
                made[i | h] = write.shuffle(wide[i], wide[i | h], high)
        wide = made
    return wide
