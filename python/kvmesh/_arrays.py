"""Arrays of the caller's own library, for the extension module."""

import sys


def empty(like, shape, float32):
    """Returns a new array of torch or cupy if `like` is theirs, else of numpy; of `like`'s type or
    float32."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        dtype = torch.float32 if float32 else like.dtype
        return torch.empty(shape, dtype=dtype, device=like.device)
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
        limits = numpy.iinfo(numpy.int32)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise OverflowError("integers in mods are int32")
        return numpy.ascontiguousarray(array, numpy.int32)
    raise TypeError(f"a buffer holds float32, int32 or bool, not {array.dtype}")
