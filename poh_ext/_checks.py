"""Checks of arguments that need no look at the data, made once for every backend, and where the work is done.

Those of mazes, tasks and rollouts stand first, those of the losses, of attention and of routing after them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from poh_ext._backend import has_kernel
from poh_ext.reference.horizon_ce import check_candidates, check_targets

MAX_CELLS = 2**26  # the kernels pack a cell and four bits into an int32
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INDICES = (torch.int64, torch.int32)
_LARGEST = 1e30  # beyond, float32 has no number for an option or for its inverse
_FARTHEST = 2**31 - 1  # horizon
_REDUCTIONS = ("mean", "sum", "none", "position_mean")


def ceil_of(share: float, n: int) -> int:
    """ceil(share * n) of the decimal that was given: 55 of 0.55 and 100, where floats make 55.00000000000001."""
    return math.ceil(share * n * (1 - 2**-50))  # off by less than that: rounded as it was read and as it was multiplied


def which_items(which, length: int):
    """An index of the items of a batch, checked: a slice, a tensor or list of ints or bools as it is, an integer of any
    library (negative: from the end) as the slice that holds just that item of `length`.

    Raises TypeError for anything else: True, None, and a tuple, which would cut rows and columns too. IndexError if
    there is no such item.
    """
    # NumPy's bools, too, which its releases before 2.3 take for the integers 0 and 1.
    if isinstance(which, (bool, np.bool_, tuple)) or which is None or which is Ellipsis:
        raise TypeError(f"an index must be an int, a slice, a tensor or a list of ints, got {which!r}")
    if isinstance(which, slice) and which.step is not None and which.step < 0:
        which = range(*which.indices(length))
    if isinstance(which, (slice, range)):
        return which if isinstance(which, slice) else list(which)
    if hasattr(which, "__array__") and not isinstance(which, Tensor) and getattr(which, "ndim", None):
        which = torch.as_tensor(which)  # of NumPy
    if isinstance(which, list):
        which = torch.tensor(which) if which else torch.zeros(0, dtype=torch.int64)
    if isinstance(which, Tensor) and (which.dim() > 0 or which.dtype == torch.bool):
        if which.dim() != 1 or which.is_floating_point() or which.is_complex():
            kind = f"{str(which.dtype).removeprefix('torch.')} {list(which.shape)}"
            raise TypeError(f"an index must be an int, a slice, a tensor [m] or a list of ints, got a {kind} tensor")
        if which.dtype == torch.bool:
            if which.shape[0] != length:
                raise IndexError(f"a bool index must have {length} entries, one for each item, got {which.shape[0]}")
            return which
        return which.long()
    try:
        index = operator.index(which)
    except TypeError:
        raise TypeError(f"an index must be an int, a slice, a tensor or a list of ints, got {which!r}") from None
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of range for {length} mazes")
    index %= length
    return slice(index, index + 1)


def check_dtype(name: str, t, *dtypes: torch.dtype) -> None:
    if not isinstance(t, Tensor) or t.dtype not in dtypes:
        given = str(t.dtype).removeprefix("torch.") if isinstance(t, Tensor) else type(t).__name__
        accepted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be a{'n' * accepted.startswith('i')} {accepted} tensor, got {given}")


def check_alike(name: str, batches: Sequence, kind: type) -> None:
    """Batches that can be joined: one at least, of one size and on one device."""
    for at, batch in enumerate(batches):
        if not isinstance(batch, kind):
            raise TypeError(f"{name}[{at}] must be {kind.__name__}, got {type(batch).__name__}")
    if not batches:
        raise ValueError(f"{name} must hold one at least")
    for at, batch in enumerate(batches):
        if batch.size != batches[0].size or batch.device != batches[0].device:
            (h, w), (height, width) = batches[0].size, batch.size
            raise ValueError(
                f"{name} must be of one size and on one device, got {h} x {w} on {batches[0].device}, and at {at} "
                f"{height} x {width} on {batch.device}"
            )


def check_cells(name: str, cells: Tensor, n: int, device: torch.device, *, several: bool = False) -> None:
    """Cells int64 [n], one for each maze, or [n, G] if `several`; their values are checked by the backends."""
    check_dtype(name, cells, torch.int64)
    shapes = f"[{n}]" + f" or [{n}, G]" * several
    if cells.dim() not in (1, 1 + several) or cells.shape[0] != n or 0 in cells.shape[1:]:
        raise ValueError(f"{name} must be {shapes}, one cell for each maze, got {list(cells.shape)}")
    if cells.device != device:
        raise ValueError(f"{name} is on {cells.device}, the mazes are on {device}")


def check_shares(name: str, share: float | Sequence[float]) -> tuple[float, float]:
    """(lowest, highest) of a share given as a number or as a range, in [0, 1]."""
    pair = share if isinstance(share, Sequence) and not isinstance(share, str) else (share, share)
    if len(pair) != 2 or not all(isinstance(s, Real) and not isinstance(s, bool) for s in pair):
        raise TypeError(f"{name} must be a number or a pair (lowest, highest), got {share!r}")
    low, high = map(float, pair)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{name} must be in [0, 1], or (lowest, highest) there, got {share!r}")
    return low, high


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a size given as int or (H, W); each at least 1."""
    try:
        pair = (size, size) if not isinstance(size, Sequence) else tuple(size)
        height, width = (operator.index(s) for s in pair)
    except (TypeError, ValueError):
        raise TypeError(f"size must be an int or (height, width), got {size!r}") from None
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1, got {size!r}")
    if height * width > MAX_CELLS:
        raise ValueError(f"size must be at most {MAX_CELLS} cells, got {size!r}: {height} x {width} cells")
    return height, width


def check_int(name: str, value: int, low: int, high: int = 2**63 - 1) -> int:
    """`value` as an int in [low, high]."""
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
    return value


def check_device(device: torch.device | str) -> torch.device:
    """`device` as a torch.device, if it is there."""
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"device must be a torch.device or its name, got {device!r}") from None
    module: Any = getattr(torch, wanted.type, None)
    if wanted.type == "cpu" or not hasattr(module, "is_available") or torch.compiler.is_compiling():
        return wanted  # or one that torch itself knows nothing of, as "meta"
    count = module.device_count() if module.is_available() else 0
    if (wanted.index or 0) >= count:
        others = [f"{wanted.type}:{i}" for i in range(count)]
        for name in ("cuda", "mps"):
            others += [name] * (name != wanted.type and getattr(torch, name).is_available())
        raise ValueError(f"device {str(wanted)!r} is not available; available: {', '.join(['cpu', *others])}")
    return wanted


def work_device(device: torch.device | str) -> torch.device:
    """Where mazes for `device` are made: kernels on the CPU beat the PyTorch reference on any accelerator."""
    device = check_device(device)
    return torch.device("cpu") if not has_kernel(device) and has_kernel(torch.device("cpu")) else device


def check_whole(name: str, t: Tensor) -> None:
    """Refuse a DTensor, of which a process holds a part. Only that class has placements: to import it takes 0.5 s."""
    if (placements := getattr(t, "placements", None)) is not None:
        raise TypeError(
            f"{name} must be a plain tensor, got a DTensor {list(placements)}: under fully_shard, compute in the "
            f"forward of its module, which gathers it; else pass {name}.full_tensor(), whose gradient needs "
            "grad_placements=[Partial()] where the data of the processes differ"
        )


def check_tensor(name: str, t, shape: tuple, dtypes: tuple, like: Tensor) -> None:
    """shape: ints are sizes, strings name free ones."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    check_whole(name, t)
    if t.dtype not in dtypes:
        accepted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be {accepted}, got {str(t.dtype).removeprefix('torch.')}")
    if t.dim() != len(shape) or any(not isinstance(s, str) and s != n for s, n in zip(shape, t.shape, strict=True)):
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name} must have shape [{expected}], got {list(t.shape)}")
    if t.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, as the first argument is, got {t.device}")


class Checked(NamedTuple):
    """Options as plain ints. offsets: how far ahead the target of each horizon is."""

    offsets: range | tuple[int, ...]
    ignore_index: int


def _integer(value) -> int | None:
    """`value` as an int, if it is an integer of any library but no bool."""
    if type(value) is int:
        return value
    if isinstance(value, (bool, list, tuple)):  # of a list, torch 2.10's compiler ends with an error of its own
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _offsets(horizons) -> range | tuple[int, ...]:
    """A range where they are 1, 2, ..., K."""
    if type(horizons) is int and 1 <= horizons <= _FARTHEST:  # as nearly always: the rest takes a microsecond
        return range(1, horizons + 1)
    if (number := _integer(horizons)) is not None:
        if number < 1:
            raise ValueError(f"horizons must be at least 1, got {number}")
        if number > _FARTHEST:
            raise ValueError(f"horizons must be at most {_FARTHEST}, got {number}")
        return range(1, number + 1)
    if not isinstance(horizons, Sequence) or isinstance(horizons, str):
        raise TypeError(f"horizons must be an int or a sequence of ints, got {type(horizons).__name__}")
    numbers = [_integer(offset) for offset in horizons]
    offsets = tuple(number for number in numbers if number is not None)
    if len(offsets) < len(numbers):
        raise TypeError(f"horizons must be an int or a sequence of ints, got {horizons!r}")
    if not offsets or min(offsets) < 0 or len(set(offsets)) < len(offsets):
        raise ValueError(f"horizons must be distinct offsets of at least 0, and one at least, got {horizons!r}")
    if max(offsets) > _FARTHEST:
        raise ValueError(f"horizons must be offsets of at most {_FARTHEST}, got {horizons!r}")
    consecutive = range(1, len(offsets) + 1)
    return consecutive if offsets == tuple(consecutive) else offsets


def check_options(horizons, label_smoothing, ignore_index, reduction, z_loss, softcap, return_metrics) -> Checked:
    offsets = _offsets(horizons)
    if not isinstance(return_metrics, bool):
        raise TypeError(f"return_metrics must be a bool, got {type(return_metrics).__name__}")
    for name, value in (("label_smoothing", label_smoothing), ("z_loss", z_loss), ("softcap", softcap)):
        if (isinstance(value, bool) or not isinstance(value, Real)) and not (name == "softcap" and value is None):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if (ignored := _integer(ignore_index)) is None:
        raise TypeError(f"ignore_index must be an int, got {type(ignore_index).__name__}")
    if not -(2**63) <= ignored < 2**63:
        raise ValueError(f"ignore_index must be a 64-bit integer, got {ignore_index}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    if not 0 <= z_loss <= _LARGEST:
        raise ValueError(f"z_loss must be from 0 to {_LARGEST:g}, got {z_loss}")
    if softcap is not None and not 1 / _LARGEST <= softcap <= _LARGEST:
        raise ValueError(f"softcap must be from {1 / _LARGEST:g} to {_LARGEST:g}, or None for no cap, got {softcap}")
    return Checked(offsets, ignored)


def check_weights(name: str, weights, shape: tuple, like: Tensor) -> Tensor | None:
    """Weights as a tensor of the dtype `like` is accumulated in, or None; sequences are accepted too."""
    if weights is None:
        return None
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if not isinstance(weights, Tensor):
        if not isinstance(weights, Sequence) or isinstance(weights, str):
            raise TypeError(f"{name} must be a tensor or a sequence of floats, got {type(weights).__name__}")
        try:
            weights = torch.tensor(weights, dtype=dtype, device=like.device)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be a tensor or a sequence of floats, got {weights!r:.60}: {error}") from error
    check_tensor(name, weights, shape, FLOATS, like)
    if weights.requires_grad:
        raise ValueError(
            f"{name} must not require a gradient: none is computed for it. "
            'Use reduction="none" and weight the terms yourself to learn the weights'
        )
    return weights.to(dtype)


def autocasts(device: str) -> bool:
    try:
        return torch.is_autocast_enabled(device)
    except RuntimeError:  # a device without autocast, as "meta"
        return False


def autocast_together(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in autocast's dtype, where autocast is on for their device: as F.linear and
    scaled_dot_product_attention cast theirs. Where one is float64, which those leave alone, none is cast."""
    if any(isinstance(t, Tensor) and t.dtype == torch.float64 for t in tensors):
        return tensors
    device = next((t.device.type for t in tensors if isinstance(t, Tensor)), "cpu")
    if not autocasts(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    casts = (torch.float32, torch.bfloat16, torch.float16)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype in casts else t for t in tensors)


def listed(candidates: Tensor | None) -> Tensor | None:
    """Candidates, or None where every list is of no length: a row without candidates allows all classes."""
    return None if candidates is None or candidates.shape[2] == 0 else candidates


def check_one_mask(valid, candidates) -> None:
    if valid is not None and candidates is not None:
        raise ValueError("valid and candidates say the same: give at most one of the two")


def check_indices(targets, rows, valid, candidates, segments, n_rows: int, n_classes: int, reach: int, like: Tensor):
    """Shapes and dtypes of the tensors that say what is asked; their values are checked by the backends.

    Returns targets, rows, candidates and segments in int64. reach: the largest offset of a horizon.
    """
    batch = like.shape[0]
    check_tensor("targets", targets, (batch, "L"), INDICES, like)
    if rows is not None:
        check_tensor("rows", rows, tuple(targets.shape), INDICES, like)
    elif targets.shape[1] > n_rows + reach:
        raise ValueError(f"targets have {targets.shape[1]} positions but there are only {n_rows} rows: pass rows")
    check_one_mask(valid, candidates)
    if valid is not None:
        check_tensor("valid", valid, (batch, n_rows, n_classes), (torch.bool,), like)
    if candidates is not None:
        check_tensor("candidates", candidates, (batch, n_rows, "C"), INDICES, like)
    if segments is not None:
        check_tensor("segments", segments, tuple(targets.shape), INDICES, like)
    given = (targets, rows, candidates, segments)
    return [t if t is None or t.dtype is torch.int64 else t.long() for t in given]


class named_by_its_place:
    """A context in which an index error of the table that the backends are given names the place in `targets` instead.

    It costs nothing as long as there is no error.
    """

    def __init__(self, name: str, targets: Tensor, n_classes: int, ignore_index: int, candidates: Tensor | None = None):
        self.name, self.targets, self.n_classes, self.ignore_index = name, targets, n_classes, ignore_index
        self.candidates = candidates  # where the backends are given them in another shape, too

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not IndexError:
            return
        try:
            if str(error).startswith("targets["):
                check_targets(self.name, self.targets, self.n_classes, self.ignore_index)
            elif str(error).startswith("candidates[") and self.candidates is not None:
                check_candidates(self.candidates, self.n_classes)
        except IndexError as named:
            raise named from None
