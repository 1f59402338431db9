"""Arrays of the caller's own library, for the extension module."""

import sys


def empty(like, shape, float32):
    """Returns a new array of torch or cupy if `like` is theirs, else of numpy; of `like`'s type or
    float32."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        return like.new_empty(shape, dtype=torch.float32) if float32 else like.new_empty(shape)
    if type(like).__module__.partition(".")[0] == "cupy":
        import cupy as library
    else:
        import numpy as library
    return library.empty(shape, library.float32 if float32 else like.dtype)


def for_buffer(values):
    """Returns a contiguous array of float32, int32 or bool, of one or two dimensions."""
    import numpy
    if hasattr(values, "detach"):  # torch's, on any device
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    array = numpy.asarray(values)
    if array.ndim not in (1, 2):
        raise TypeError("a buffer has one or two dimensions")
    if array.dtype.kind == "b":
        return numpy.ascontiguousarray(array)
    if array.dtype.kind == "f":
        return numpy.ascontiguousarray(array, numpy.float32)
    if array.dtype.kind in "iu":
        return _int32(array, "integers in mods are int32")
    raise TypeError(f"a buffer holds float32, int32 or bool, not {array.dtype}")


def for_table(values, name):
    """Returns a contiguous array of int32, of one or two dimensions: the argument `name` of page tables."""
    import numpy
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    array = numpy.asarray(values)
    if array.ndim not in (1, 2):
        raise TypeError(f"{name} has {array.ndim} dimensions: it takes one or two")
    if array.dtype.kind not in "iu" and array.size:  # [] has floats
        raise TypeError(f"{name} holds {array.dtype}: it takes integers")
    return _int32(array, f"{name} holds int32")


def _int32(array, rule):
    import numpy
    limits = numpy.iinfo(numpy.int32)
    for value in (array.min(), array.max()) if array.size else ():
        if not limits.min <= value <= limits.max:
            raise OverflowError(f"{rule}: {value} does not fit")
    return numpy.ascontiguousarray(array, numpy.int32)
