"""torch's functions on symbolic values, so that mods written for flex_attention are traced as they
are: torch calls Expr.__torch_function__ where an Expr meets one of its functions or tensors."""

import operator

import torch

from .. import _kvmesh
from .._kvmesh import Buffer, Expr, MaskMod, ScoreMod


def mask_mod_of(function):
    """Returns `function` as a MaskMod."""
    if isinstance(function, MaskMod):
        return function
    return MaskMod(_traced(function))


def score_mod_of(function):
    """Returns `function` as a ScoreMod; None stays None."""
    if function is None or isinstance(function, ScoreMod):
        return function
    return ScoreMod(_traced(function))


_positions = set()  # the ids of b, h, q and kv of mods that are being traced: they are never negative


def _traced(function):
    def traced(*arguments):
        positions = {id(each) for each in arguments[-4:]}
        _positions.update(positions)
        try:
            return _plain(function(*arguments))
        finally:
            _positions.difference_update(positions)

    return traced


def _from_end(index, size):
    """Returns an index as torch takes it: a negative one counts from the end."""
    if not isinstance(index, Expr):
        return range(size)[index]
    if id(index) in _positions:
        return index
    return _kvmesh.where(index < 0, index + size, index)


def _plain(value):
    """Returns the number in a captured tensor of one element; anything else unchanged."""
    if isinstance(value, _Captured):
        raise TypeError(f"a mod computes one value at a time: {value} needs more indices")
    if not isinstance(value, torch.Tensor):
        return value
    if value.numel() != 1:
        raise TypeError("a mod computes one value at a time: index the captured tensor of shape "
                        f"{tuple(value.shape)}")
    return value.item()


class _Captured:
    """A captured tensor with its first index."""

    def __init__(self, tensor, index=()):
        self._tensor, self._index = tensor, index

    def __getitem__(self, index):
        index = self._index + (index if isinstance(index, tuple) else (index,))
        if len(index) > self._tensor.dim():
            raise IndexError(f"{len(index)} indices of a captured tensor of shape "
                             f"{tuple(self._tensor.shape)}")
        for each in index:
            if each is None or each is Ellipsis or isinstance(each, (bool, slice)):
                raise TypeError(f"{each} as an index of a captured tensor: a mod takes one element")
        if len(index) < self._tensor.dim():
            return _Captured(self._tensor, index)
        return self._element([_plain(each) for each in index])

    def _element(self, index):
        at = 0
        for each, extent in zip(index, self._tensor.shape):
            at = at * extent + _from_end(each, extent)
        return Buffer(self._tensor.reshape(-1))[at]

    def __repr__(self):
        return f"a captured tensor of shape {tuple(self._tensor.shape)}"


def _to(value, dtype):
    if not isinstance(dtype, torch.dtype):  # a device
        return value
    if dtype == torch.bool:
        return value != 0
    if dtype in (torch.float32, torch.float64):
        return _kvmesh.to_float(value)
    if dtype in (torch.int32, torch.int64):
        return _kvmesh.to_int(value)
    raise TypeError(f"a mod computes in float32, int32 and bool, so it cannot convert to {dtype}")


def _clamp(value, min=None, max=None):
    value = value if min is None else _kvmesh.maximum(value, min)
    return value if max is None else _kvmesh.minimum(value, max)


def _divide(a, b, rounding_mode=None):
    if rounding_mode not in (None, "floor"):
        raise TypeError(f"rounding_mode={rounding_mode!r} in a mod")
    return a // b if rounding_mode else a / b


def _power(value, exponent):
    if exponent == 0.5:
        return _kvmesh.sqrt(value)
    if not isinstance(exponent, int) or not 1 <= exponent <= 16:
        raise TypeError(f"a power of {exponent!r} in a mod: it may be 0.5, or 1 to 16")
    result = value
    for _ in range(exponent - 1):
        result = result * value
    return result


def _full(value, dtype=None):
    """Returns a tensor, because functions read its device afterwards."""
    return torch.full((), value, dtype=dtype or torch.int32, device="cpu")


_OPERATORS = {
    "add": operator.add, "sub": operator.sub, "subtract": operator.sub, "mul": operator.mul,
    "multiply": operator.mul, "div": _divide, "divide": _divide, "true_divide": operator.truediv,
    "truediv": operator.truediv, "floor_divide": operator.floordiv,
    "floordiv": operator.floordiv, "remainder": operator.mod, "mod": operator.mod,
    "and": operator.and_, "bitwise_and": operator.and_, "logical_and": operator.and_,
    "or": operator.or_, "bitwise_or": operator.or_, "logical_or": operator.or_,
    "eq": operator.eq, "ne": operator.ne, "not_equal": operator.ne, "lt": operator.lt,
    "less": operator.lt, "le": operator.le, "less_equal": operator.le, "gt": operator.gt,
    "greater": operator.gt, "ge": operator.ge, "greater_equal": operator.ge,
    "maximum": _kvmesh.maximum, "minimum": _kvmesh.minimum,
    "pow": _power, "power": _power,
}
_REFLECTED = {"r" + name: function for name, function in _OPERATORS.items()}
_FUNCTIONS = {
    "abs": abs, "absolute": abs, "neg": operator.neg, "negative": operator.neg,
    "exp": _kvmesh.exp, "log": _kvmesh.log, "sqrt": _kvmesh.sqrt, "tanh": _kvmesh.tanh,
    "rsqrt": lambda a: 1 / _kvmesh.sqrt(a), "square": lambda a: a * a,
    "reciprocal": lambda a: 1 / a, "sigmoid": lambda a: 1 / (1 + _kvmesh.exp(-a)),
    "invert": operator.invert, "bitwise_not": operator.invert, "logical_not": operator.invert,
    "where": _kvmesh.where, "clamp": _clamp, "clip": _clamp,
    "clamp_min": lambda a, min: _clamp(a, min), "clamp_max": lambda a, max: _clamp(a, None, max),
    "ones_like": lambda a, dtype=None, **_: _full(1, dtype),
    "zeros_like": lambda a, dtype=None, **_: _full(0, dtype),
    "full_like": lambda a, fill_value, **_: fill_value,
}


def _torch_function(cls, function, types, args=(), kwargs=None):
    name = getattr(function, "__name__", "").strip("_")
    if name == "getitem":
        return _Captured(args[0])[args[1]]
    args = [_plain(each) for each in args]
    kwargs = {key: _plain(each) for key, each in (kwargs or {}).items()}
    if name in _REFLECTED and name not in _OPERATORS:
        return _REFLECTED[name](args[1], args[0])
    known = _OPERATORS.get(name) or _FUNCTIONS.get(name)
    if known is None:
        raise TypeError(f"kvmesh cannot trace {function} in a mod")
    return known(*args, **kwargs)


def _method(function):
    """Returns a Python function, which a class binds; it does not bind built-in ones."""
    return lambda *arguments, **more: function(*arguments, **more)


def _teach_expr():
    """Gives symbolic values the methods of zero-dimensional tensors that mods use."""
    Expr.__torch_function__ = classmethod(_torch_function)
    for name in ("abs", "exp", "log", "sqrt", "tanh", "sigmoid", "square", "clamp", "clip", "neg",
                 "logical_not"):
        setattr(Expr, name, _method(_FUNCTIONS[name]))
    for name in ("logical_and", "logical_or", "maximum", "minimum", "remainder", "pow", "eq", "ne",
                 "lt", "le", "gt", "ge", "add", "sub", "mul", "div"):
        setattr(Expr, name, _method(_OPERATORS[name]))
    Expr.__pow__ = _power
    Expr.to = Expr.type = _to
    Expr.float = _method(_kvmesh.to_float)
    Expr.int = Expr.long = _method(_kvmesh.to_int)
    Expr.bool = lambda self: self != 0
    Expr.half = lambda self: _to(self, torch.float16)
    Expr.bfloat16 = lambda self: _to(self, torch.bfloat16)
    Expr.new_ones = lambda self, size=(), dtype=None, device=None: _full(1, dtype)
    Expr.new_zeros = lambda self, size=(), dtype=None, device=None: _full(0, dtype)
    Expr.new_full = lambda self, size, fill_value, dtype=None, device=None: fill_value
    Expr.device = torch.device("cpu")


_teach_expr()
