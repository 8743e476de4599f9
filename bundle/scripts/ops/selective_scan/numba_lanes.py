"""A SIMD value for Numba kernels: `LANES` floats that one instruction works on.

Numba's compiler vectorises plain loops only where it can show that no two arrays overlap, and gives up on
loops with many arrays, as the scan's are. So these functions say SIMD outright, in LLVM's vector types, and a
state stays in a register over all steps of a loop. LLVM maps them to whatever the processor has.

Lanes know +, -, *, / among themselves; `a * b + c` may become one multiply-add with a single rounding.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, overload, register_model
from numba.np.arrayobj import make_array

LANES = 16
LOG2_E = 1.4426950408889634

# By bits of the float. 2^f = 1 + f q(f) on [-1/2, 1/2]: minimax, relative error 9e-8 and 1e-17. The leading
# 1 is apart, so that 2^0 is exactly 1.
_EXP2 = {
    32: (0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512059867382, 0.00132647471036762),
    64: (
        *(0.6931471805599453, 0.24022650695910072, 0.055504108664821625, 0.00961812910762848),
        *(0.001333355814640647, 0.00015403530393370734, 1.5252733841556773e-05, 1.3215486808705563e-06),
        *(1.0178057087733941e-07, 7.0548973041554995e-09, 4.4558179083360645e-10, 2.5729324177362305e-11),
    ),
}
# log(1 + x) = x q(x) on [0, 1]: minimax, relative error 3e-8 and 1e-16.
_LOG1P = {
    32: (
        *(0.9999999403953552, -0.4999949336051941, 0.33319100737571716, -0.248430073261261, 0.19106073677539825),
        *(-0.13663342595100403, 0.07822668552398682, -0.029505494982004166, 0.005232718773186207),
    ),
    64: (
        *(1.0, -0.4999999999999908, 0.33333333333197523, -0.24999999992009522),
        *(0.19999999749856523, -0.16666661848248537, 0.14285651975275926, -0.12499427063514382),
        *(0.11107211585299538, -0.09979768096586568, 0.09009095815198633, -0.08070954578430206),
        *(0.07015296236526472, -0.05718978534193906, 0.041925709853904154, -0.026398779480743217),
        *(0.013598778090617254, -0.0054217339910016095, 0.0015535244034334333, -0.0002827421139374107),
        *(2.4437973948580947e-05,),
    ),
}
_MANTISSA = {32: 23, 64: 52}
# No "nnan" or "ninf": NaN and inf must come through. No "reassoc": it would undo the rounding in exp2.
_FLAGS = ("contract",)


class Lanes(types.Type):
    """`LANES` floats of one dtype."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Lanes) -> None:
        super().__init__(manager, fe_type, ir.VectorType(_float(fe_type.dtype), LANES))


def _float(dtype: types.Float) -> ir.Type:
    return ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType()


def _constant(vector: ir.VectorType, value: float | int) -> ir.Constant:
    return ir.Constant(vector, [value] * LANES)


def _integers(dtype: types.Float) -> ir.VectorType:
    return ir.VectorType(ir.IntType(dtype.bitwidth), LANES)


# --- memory ---


def _address(context: Any, builder: ir.IRBuilder, array: types.Array, value: Any, row: Any) -> ir.Value:
    data = make_array(array)(context, builder, value).data
    start = builder.gep(data, [builder.mul(row, ir.Constant(row.type, LANES))])
    return builder.bitcast(start, ir.VectorType(_float(array.dtype), LANES).as_pointer())


@intrinsic
def get(context: Any, array: Any, row: Any) -> Any:
    """Row `row` of a contiguous array (..., LANES), its leading axes taken as one."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *args), align=array.dtype.bitwidth // 8)

    return Lanes(array.dtype)(array, types.intp), code


@intrinsic
def put(context: Any, array: Any, row: Any, value: Any) -> Any:
    """Store lanes as row `row` of a contiguous array (..., LANES)."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], *args[:2])
        builder.store(args[2], address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), code


@intrinsic
def get_at(context: Any, flat: Any, start: Any) -> Any:
    """The `LANES` numbers of flat memory from element `start` on."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.gep(data, [args[1]])
        vector = ir.VectorType(_float(flat.dtype), LANES)
        return builder.load(builder.bitcast(address, vector.as_pointer()), align=flat.dtype.bitwidth // 8)

    return Lanes(flat.dtype)(flat, types.intp), code


@intrinsic
def put_at(context: Any, flat: Any, start: Any, value: Any) -> Any:
    """Store lanes to flat memory from element `start` on."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), args[2].type.as_pointer())
        builder.store(args[2], address, align=flat.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(flat, types.intp, value), code


@intrinsic
def splat(context: Any, scalar: Any) -> Any:
    """A scalar in every lane."""
    vector = ir.VectorType(_float(scalar), LANES)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), args[0], ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

    return Lanes(scalar)(scalar), code


@intrinsic
def total(context: Any, a: Any) -> Any:
    """The sum over the lanes, in the order of a binary tree."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            halves = (ir.Constant(ir.VectorType(ir.IntType(32), width), [*range(i, i + width)]) for i in (0, width))
            value = builder.fadd(*(builder.shuffle_vector(value, value, half) for half in halves))
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return a.dtype(a), code


# --- arithmetic ---


def _binary(operation: Callable[..., Any], method: str) -> None:
    @intrinsic
    def apply(context: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, method)(*args, flags=_FLAGS)

        return a(a, b), code

    @overload(operation, strict=False)
    def choose(a: Any, b: Any) -> Callable[..., Any] | None:
        if isinstance(a, Lanes) and a == b:
            return lambda a, b: apply(a, b)
        return None


_binary(operator.add, "fadd")
_binary(operator.sub, "fsub")
_binary(operator.mul, "fmul")
_binary(operator.truediv, "fdiv")


def _clamp(builder: Any, x: Any, low: float | None, high: float | None) -> Any:
    """x between low and high; comparisons that are false for NaN let it pass."""
    for limit, order in ((low, "<"), (high, ">")):
        if limit is not None:
            bound = _constant(x.type, limit)
            x = builder.select(builder.fcmp_ordered(order, x, bound), bound, x)
    return x


def _horner(builder: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    *rest, value = (_constant(x.type, c) for c in coefficients)
    for c in reversed(rest):
        value = builder.fadd(builder.fmul(value, x, flags=_FLAGS), c, flags=_FLAGS)
    return value


@intrinsic
def exp2_parts(context: Any, x: Any) -> Any:
    """2^x as a pair (s, m): 2^x = s + s m, s a power of two and |m| below 0.42.

    A state multiplied as s h + (s h) m keeps its last bits where x is tiny, for which 2^x itself would round
    to the same side step after step. x = 0 gives exactly (1, 0); In float32 s is 0 below x = -126.5 and
    inf from 127.5 on, half a unit before the dtype ends, and m is NaN if x is.
    """
    bits, mantissa = x.dtype.bitwidth, _MANTISSA[x.dtype.bitwidth]
    bias = 2 ** (bits - mantissa - 2) - 1  # of the exponent: 127 or 1023

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # With the exponent -bias or bias + 1 the bits of s are those of exactly 0 and inf.
        value = _clamp(builder, args[0], -bias, bias + 1)
        # Adding 1.5 * 2^mantissa rounds to an integer, which then stands in the lowest bits.
        shift = _constant(value.type, 1.5 * 2**mantissa)
        shifted = builder.fadd(value, shift)
        f = builder.fsub(value, builder.fsub(shifted, shift))
        integers = _integers(x.dtype)
        exponent = builder.shl(builder.bitcast(shifted, integers), _constant(integers, mantissa))
        scale = builder.bitcast(builder.add(exponent, _constant(integers, bias << mantissa)), value.type)
        fraction = builder.fmul(f, _horner(builder, f, _EXP2[bits]), flags=_FLAGS)
        return context.make_tuple(builder, signature.return_type, [scale, fraction])

    return types.UniTuple(x, 2)(x), code


@intrinsic
def _log1p_of_unit(context: Any, x: Any) -> Any:
    """log(1 + x) for x in [0, 1]."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fmul(args[0], _horner(builder, args[0], _LOG1P[x.dtype.bitwidth]))

    return x(x), code


@intrinsic
def _minus_abs(context: Any, x: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integers = _integers(x.dtype)
        sign = _constant(integers, 1 << (x.dtype.bitwidth - 1))
        return builder.bitcast(builder.or_(builder.bitcast(args[0], integers), sign), args[0].type)

    return x(x), code


@intrinsic
def _not_below_zero(context: Any, x: Any) -> Any:
    return x(x), lambda context, builder, signature, args: _clamp(builder, args[0], 0, None)


def _everywhere(number: float) -> Any:
    """A function of lanes that gives `number` in every lane, in their dtype."""

    @intrinsic
    def constant(context: Any, like: Any) -> Any:
        return like(like), lambda context, builder, signature, args: _constant(args[0].type, number)

    return constant


zero, one, log2_e, ln_2 = (_everywhere(number) for number in (0.0, 1.0, LOG2_E, 1 / LOG2_E))

_inlined = njit(forceinline=True, error_model="numpy")


@_inlined
def exp2(x: Lanes) -> Lanes:
    """2^x; exactly 1 at 0, relative error 2e-7 (float32). 0 below x = -126.5 and inf from 127.5 on (float32)."""
    scale, fraction = exp2_parts(x)
    return scale * (one(x) + fraction)


@_inlined
def softplus(x: Lanes) -> Lanes:
    """log(1 + exp(x)), as max(x, 0) + log(1 + exp(-|x|))."""
    return _not_below_zero(x) + _log1p_of_unit(exp2(_minus_abs(x) * log2_e(x)))


@_inlined
def sigmoid(x: Lanes) -> Lanes:
    """1 / (1 + exp(-x))"""
    return one(x) / (one(x) + exp2((zero(x) - x) * log2_e(x)))
