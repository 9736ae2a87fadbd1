"""How the kernels are compiled, and the types they share.

Loop bounds in kernels are unsigned (`U`) on purpose: numba wraps negative indices, and that test
keeps LLVM from using vector instructions. Rows and slices are assigned and filled by loops: what
numba compiles for `a[i] = b[j]`, `a[:] = 0` or `np.full` doubled the time of a cold start. A kernel
calls only kernels of its own file: numba's cache on disk notices changes of no other.

No `fastmath`: the order of its reductions follows the CPU.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
UInt16Array = npt.NDArray[np.uint16]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Int16Array = npt.NDArray[np.int16]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Count = Any  # int to the reader, int64 or uint64 in compiled code

U = np.uint64
I32 = np.int32

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def inner(function: _Kernel) -> _Kernel:
    """Compiles a kernel that only kernels call: without the wrappers that Python would need."""
    compiled: _Kernel = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return compiled


def entry(function: _Kernel) -> _Kernel:
    """Compiles without the GIL; cached on disk where numba finds a folder it can write."""
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # "no locator available": each process compiles for itself
        compiled = numba.njit(nogil=True)(function)
    result: _Kernel = compiled
    return result
