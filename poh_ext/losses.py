"""Planning losses: cross-entropy at several horizons at once, of logits or of hidden states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poh_ext._checks import (
    FLOATS,
    autocast_together,
    check_indices,
    check_options,
    check_tensor,
    check_weights,
    listed,
    named_by_its_place,
)
from poh_ext._options import ModuleOptions, PlanningOptions
from poh_ext.ops.horizon_ce import horizon_ce
from poh_ext.ops.horizon_linear_ce import horizon_linear_ce
from poh_ext.reference.horizon_ce import asked_table

__all__ = [
    "HorizonMetrics",
    "MultiHorizonCrossEntropy",
    "MultiHorizonLinearCrossEntropy",
    "multi_horizon_cross_entropy",
    "multi_horizon_linear_cross_entropy",
]

if TYPE_CHECKING:
    from typing_extensions import TypeVar, Unpack

    LossT = TypeVar("LossT", default=Tensor)  # what a module form returns
else:
    from typing import TypeVar

    LossT = TypeVar("LossT")

_SAME_PLACES = nullcontext()


class HorizonMetrics(NamedTuple):
    """Metrics of each horizon, which ``return_metrics=True`` returns beside the loss. They have no gradients.

    Attributes:
        accuracy: [K], the share of terms whose target has the largest logit (under a mask: the largest allowed one).
        loss: [K], the mean of the terms, without ``horizon_weights``; 0 where they occur but have no weight.
        weight: [K], the sum of the weights of the terms (``horizon_weights`` times the ``weight`` of the target; the
            number of the terms, if neither is given). Its sum is what "mean" divides by: a batch that is split among
            steps or processes has reduction="sum" divided by the weight of all its parts together.

    They are float64 for float64 logits, else float32. Accuracy and loss are NaN at a horizon that has no terms.

    Examples:
        >>> path = torch.tensor([[0, 1, 2, 5]])
        >>> loss, metrics = multi_horizon_cross_entropy(torch.zeros(1, 4, 9), path, horizons=2, return_metrics=True)
        >>> metrics.loss
        tensor([2.1972, 2.1972])
    """

    accuracy: Tensor
    loss: Tensor
    weight: Tensor


@overload
def multi_horizon_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | Sequence[float] | None = None,
    return_metrics: Literal[False] = False,
    **options: Unpack[PlanningOptions],
) -> Tensor: ...
@overload
def multi_horizon_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | Sequence[float] | None = None,
    return_metrics: Literal[True],
    **options: Unpack[PlanningOptions],
) -> tuple[Tensor, HorizonMetrics]: ...
@overload
def multi_horizon_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | Sequence[float] | None = None,
    return_metrics: bool,
    **options: Unpack[PlanningOptions],
) -> Tensor | tuple[Tensor, HorizonMetrics]: ...
def multi_horizon_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    horizons: int | Sequence[int] = 1,
    rows: Tensor | None = None,
    label_smoothing: float = 0.0,
    valid: Tensor | None = None,
    candidates: Tensor | None = None,
    segments: Tensor | None = None,
    horizon_weights: Tensor | Sequence[float] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    weight: Tensor | Sequence[float] | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_metrics: bool = False,
) -> Tensor | tuple[Tensor, HorizonMetrics]:
    """Cross-entropy of one sequence of logits against its targets 1, 2, ..., K steps ahead, in one pass.

    The target of position i at horizon k is ``targets[:, i + k]``. A term (i, k) exists if ``i + k < L``, its target
    is not ``ignore_index``, its row is not skipped, and both are in one segment. All horizons of a row share one
    log-sum-exp.

    Args:
        logits: [B, N, V] float32, float64, bfloat16 or float16. Half types are accumulated in float32.
        targets: [B, L] int64 or int32, each in [0, V) or ``ignore_index``.
        horizons: K >= 1, for 1, 2, ..., K steps ahead, or a sequence of K distinct offsets: [0] is plain cross-entropy
            of row i with target i (labels that were shifted before), [1, 2, 4, 8] that of Medusa-like heads. A horizon
            without terms, as one of L steps ahead, has no effect. "Horizon 1" below is the first in the sequence.
        rows: [B, L] int64 or int32, the row in [0, N) that position i reads, or -1 to skip the position (a negative
            ``ignore_index`` skips it, too). Several positions may read the same row. None: position i reads row i;
            then there are min(L, N) positions, and L may exceed N by the largest offset.
        label_smoothing: in [0, 1], the share of the target distribution spread evenly over the classes.
        valid: [B, N, V] bool, the classes that each row allows at horizon 1. There, softmax and smoothing run over
            them alone, whatever the other logits are. A target that is not allowed counts as one of logit -1e4 or,
            if the largest allowed logit is below -5000, of that logit less 1e4. A row that allows no class allows
            all. Horizons 2, 3, ... see the plain logits.
        candidates: [B, N, C] int64 or int32, the allowed classes as a list, padded with -1. Give ``valid`` or
            ``candidates``, not both.
        segments: [B, L] int64 or int32, the document of each position and target in packed sequences. No term goes
            from one into another, as if each had a row of the batch for itself.
        horizon_weights: [K] floats, not negative, the weight of each horizon (default 1). It gets no gradient.
        ignore_index: as in ``F.cross_entropy``, for targets. For rows only if it is negative: an index >= 0 is that
            of a class, and a row of the same number is read like any other.
        reduction: "mean": the sum of the weighted terms over the sum of their weights. "sum": the sum of the
            weighted terms. "none": the weighted terms of each position, [B, positions, K], 0 where one is skipped.
            "position_mean": the mean over the batch at each (i, k), then the weighted mean over the (i, k) that
            occur. Both means are 0, and so are their gradients, where there is no term, or none of weight (the
            ``weight`` of every target or the weight of every horizon is 0).
        weight: [V] floats, not negative, a weight of each class, as in ``F.cross_entropy``: "mean" divides by the
            weights of the targets (times those of the horizons), "position_mean" weights the mean over the batch by
            them.
        z_loss: adds ``z_loss * lse**2`` to each term (times the weight of its target), where lse is the
            log-sum-exp its softmax divides by: it keeps the normaliser near 1 (PaLM, section 5, with 1e-4).
        softcap: replaces the logits z by ``softcap * tanh(z / softcap)`` first (Gemma 2). None: no cap.
        return_metrics: return (loss, `HorizonMetrics`), which costs a few comparisons.

    Returns:
        A scalar, or [B, L, K] for "none" ([B, N, K] without ``rows`` where L > N). The dtype is float64 for float64
        logits, else float32, also for half types. ``F.cross_entropy`` does the same under autocast, because a loss
        rounded to bfloat16 has no third digit. The gradient has the dtype of the logits. The kernels have a first
        derivative only, and refuse a second one. Under torch.func and in forward mode the PyTorch reference computes,
        slower, which has all derivatives.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
        IndexError: a target, row or candidate is out of range; the message names the first. On CUDA this needs
            POH_EXT_CHECKS=1, because looking costs a synchronisation; without it a device assertion stops the
            kernel. Under torch.compile without the C++ kernels the compiled code checks the bounds.

    Examples:
        >>> logits = torch.randn(2, 9, 9, requires_grad=True)      # a policy over 9 cells, for each cell
        >>> path = torch.tensor([[0, 1, 2, 5], [8, 7, -1, -1]])    # cells on a path, padded
        >>> loss = multi_horizon_cross_entropy(logits, path, horizons=2, rows=path, ignore_index=-1)
        >>> loss.backward()

    With ``horizons=1``, ``rows=None`` and no mask it equals
    ``F.cross_entropy(logits[:, :L - 1].flatten(0, 1), targets[:, 1:].flatten(), ...)``.
    """
    check_tensor("logits", logits, ("B", "N", "V"), FLOATS, logits)
    offsets, ignore_index = check_options(
        horizons, label_smoothing, ignore_index, reduction, z_loss, softcap, return_metrics
    )
    n_rows, n_classes = logits.shape[1:]
    targets, rows, candidates, segments = check_indices(
        targets, rows, valid, candidates, segments, n_rows, n_classes, max(offsets), logits
    )
    horizon_weights = check_weights("horizon_weights", horizon_weights, (len(offsets),), logits)
    weight = check_weights("weight", weight, (n_classes,), logits)
    used, asked = _asked(offsets, targets, rows, segments, n_rows, reduction, ignore_index)
    with _SAME_PLACES if asked is targets else named_by_its_place("targets", targets, n_classes, ignore_index):
        loss, measured = horizon_ce(
            logits, asked, rows, valid, listed(candidates), _first(used, horizon_weights), weight, used,
            label_smoothing, ignore_index, reduction, z_loss, softcap or 0.0, return_metrics,
        )  # fmt: skip
    return (loss, metrics_of(measured, horizon_weights, len(offsets))) if return_metrics else loss


@overload
def multi_horizon_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    class_weight: Tensor | Sequence[float] | None = None,
    return_metrics: Literal[False] = False,
    **options: Unpack[PlanningOptions],
) -> Tensor: ...
@overload
def multi_horizon_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    class_weight: Tensor | Sequence[float] | None = None,
    return_metrics: Literal[True],
    **options: Unpack[PlanningOptions],
) -> tuple[Tensor, HorizonMetrics]: ...
@overload
def multi_horizon_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    class_weight: Tensor | Sequence[float] | None = None,
    return_metrics: bool,
    **options: Unpack[PlanningOptions],
) -> Tensor | tuple[Tensor, HorizonMetrics]: ...
def multi_horizon_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    horizons: int | Sequence[int] = 1,
    rows: Tensor | None = None,
    label_smoothing: float = 0.0,
    valid: Tensor | None = None,
    candidates: Tensor | None = None,
    segments: Tensor | None = None,
    horizon_weights: Tensor | Sequence[float] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    class_weight: Tensor | Sequence[float] | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_metrics: bool = False,
) -> Tensor | tuple[Tensor, HorizonMetrics]:
    """The loss `multi_horizon_cross_entropy` of ``F.linear(hidden, weight, bias)``, without forming all logits.

    Only the rows that are read are multiplied by ``weight``, a chunk at a time. With ``horizons=1`` and
    ``candidates`` they are multiplied by the candidates' columns only. The logits [B, N, V] never exist. (The
    PyTorch reference, which serves where there are no kernels, forms the logits that are read: [B, L, V].)

    Args:
        hidden: [B, N, D], or [B, N, K, D] with one state per horizon, in their order (multi-token-prediction heads).
            float32, float64, bfloat16 or float16. Under autocast hidden, weight and bias are cast together, as F.linear
            casts them.
        weight: [V, D], of the dtype of hidden.
        bias: [V], of the dtype of hidden, or None.
        class_weight: [V] floats, a weight of each class (named ``weight`` in the dense form).
        targets, horizons, rows, ...: as in `multi_horizon_cross_entropy`.

    Returns:
        The same as `multi_horizon_cross_entropy`. hidden, weight and bias get gradients in their dtype.

    Raises:
        TypeError, ValueError, IndexError: under the same conditions as `multi_horizon_cross_entropy`.

    Examples:
        >>> hidden, head = torch.randn(2, 9, 32, requires_grad=True), torch.nn.Linear(32, 9)
        >>> path = torch.tensor([[0, 1, 2, 5], [8, 7, -1, -1]])
        >>> loss = multi_horizon_linear_cross_entropy(hidden, head.weight, path, bias=head.bias, rows=path,
        ...                                           horizons=2, ignore_index=-1)
        >>> loss.backward()
    """
    offsets, ignore_index = check_options(
        horizons, label_smoothing, ignore_index, reduction, z_loss, softcap, return_metrics
    )
    hidden, weight, bias = autocast_together(hidden, weight, bias)
    check_tensor("weight", weight, ("V", "D"), FLOATS, weight)
    n_classes, width = weight.shape
    states = isinstance(hidden, Tensor) and hidden.dim() == 4
    shape = ("B", "N", len(offsets), width) if states else ("B", "N", width)
    if isinstance(hidden, Tensor) and hidden.dim() in (3, 4) and hidden.shape[-1] != width:
        raise ValueError(
            f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must have the same number of "
            "features D, in their last dimension: weight is [V, D], as in nn.Linear"
        )
    check_tensor("hidden", hidden, shape, (weight.dtype,), weight)
    if bias is not None:
        check_tensor("bias", bias, (n_classes,), (weight.dtype,), weight)
    n_rows = hidden.shape[1]
    targets, rows, candidates, segments = check_indices(
        targets, rows, valid, candidates, segments, n_rows, n_classes, max(offsets), hidden
    )
    horizon_weights = check_weights("horizon_weights", horizon_weights, (len(offsets),), hidden)
    class_weight = check_weights("class_weight", class_weight, (n_classes,), hidden)
    used, asked = _asked(offsets, targets, rows, segments, n_rows, reduction, ignore_index)
    if states and used < len(offsets):
        hidden = hidden[:, :, :used]
    with _SAME_PLACES if asked is targets else named_by_its_place("targets", targets, n_classes, ignore_index):
        loss, measured = horizon_linear_ce(
            hidden, weight, bias, asked, rows, valid, listed(candidates), _first(used, horizon_weights), class_weight,
            used, label_smoothing, ignore_index, reduction, z_loss, softcap or 0.0, return_metrics,
        )  # fmt: skip
    return (loss, metrics_of(measured, horizon_weights, len(offsets))) if return_metrics else loss


def _asked(offsets, targets, rows, segments, n_rows: int, reduction: str, ignore_index: int) -> tuple[int, Tensor]:
    """How many horizons there are, and what the backends take for targets.

    Horizons 1 to K need no table: the backends look ahead in targets [B, L]. The last of these may have no terms, and
    are left out unless each term is returned, or the length may be a symbol: an exported program serves any.
    """
    length = targets.shape[1]
    used = len(offsets)
    if isinstance(offsets, range) and reduction != "none" and not torch.compiler.is_compiling():
        used = min(used, max(length - 1, 1))
    positions = length if rows is not None else min(length, n_rows)
    if isinstance(offsets, range) and segments is None and positions == length:
        return used, targets
    return used, asked_table(targets, segments, offsets[:used], positions, ignore_index)


def _first(used: int, horizon_weights: Tensor | None) -> Tensor | None:
    return None if horizon_weights is None else horizon_weights[:used]


def metrics_of(measured: Tensor, horizon_weights: Tensor | None, horizons: int) -> HorizonMetrics:
    """From the backends' [3, used], for all horizons."""
    missing = (0, horizons - measured.shape[1])
    accuracy, loss, weight = (F.pad(row, missing, value=fill) for row, fill in
                              zip(measured.unbind(), (math.nan, math.nan, 0.0), strict=True))  # fmt: skip
    return HorizonMetrics(accuracy, loss, weight if horizon_weights is None else weight * horizon_weights)


class _Loss(nn.Module, Generic[LossT]):
    """The options shared by the module forms; horizon_weights and class weights are buffers."""

    horizon_weights: Tensor | None
    class_weight: Tensor | None

    def __init__(
        self,
        *,
        horizons: int | Sequence[int] = 1,
        label_smoothing: float = 0.0,
        horizon_weights: Tensor | Sequence[float] | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        z_loss: float = 0.0,
        softcap: float | None = None,
        return_metrics: bool = False,
        class_weight: Tensor | Sequence[float] | None = None,
    ):
        super().__init__()
        offsets, _ = check_options(horizons, label_smoothing, ignore_index, reduction, z_loss, softcap, return_metrics)
        self.options: dict[str, Any] = {
            "horizons": horizons,
            "label_smoothing": label_smoothing,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "z_loss": z_loss,
            "softcap": softcap,
            "return_metrics": return_metrics,
        }
        buffers = ("horizon_weights", horizon_weights, (len(offsets),)), ("class_weight", class_weight, ("V",))
        for name, given, shape in buffers:
            like = given if isinstance(given, Tensor) else torch.empty(0)
            self.register_buffer(name, check_weights(name, given, shape, like))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class MultiHorizonCrossEntropy(_Loss[LossT]):
    """Module form of `multi_horizon_cross_entropy`. The options are fixed; a call takes the tensors of a batch.

    Args:
        weight: [V] floats, a weight of each class. It is the buffer ``class_weight``, and moves with the module.
        options: horizons, label_smoothing, horizon_weights, ignore_index, reduction, z_loss, softcap and
            return_metrics, as in the function. ``horizon_weights`` is a buffer, too.

    Raises:
        TypeError, ValueError: an option is of the wrong type or out of range. A call raises what the function does.

    Examples:
        >>> criterion = MultiHorizonCrossEntropy(horizons=3, label_smoothing=0.1, ignore_index=-1)
        >>> loss = criterion(torch.randn(2, 9, 9), torch.randint(0, 9, (2, 5)))
    """

    @overload
    def __init__(
        self: MultiHorizonCrossEntropy[Tensor],
        *,
        weight: Tensor | Sequence[float] | None = None,
        return_metrics: Literal[False] = False,
        **options: Unpack[ModuleOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: MultiHorizonCrossEntropy[tuple[Tensor, HorizonMetrics]],
        *,
        weight: Tensor | Sequence[float] | None = None,
        return_metrics: Literal[True],
        **options: Unpack[ModuleOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: MultiHorizonCrossEntropy[Tensor | tuple[Tensor, HorizonMetrics]],
        *,
        weight: Tensor | Sequence[float] | None = None,
        return_metrics: bool,
        **options: Unpack[ModuleOptions],
    ) -> None: ...
    def __init__(self, *, weight: Tensor | Sequence[float] | None = None, **options: Any) -> None:
        super().__init__(class_weight=weight, **options)

    def forward(
        self, logits: Tensor, targets: Tensor, *, rows: Tensor | None = None, valid: Tensor | None = None,
        candidates: Tensor | None = None, segments: Tensor | None = None,
    ) -> LossT:  # fmt: skip
        """The loss, as `multi_horizon_cross_entropy` returns it."""
        return multi_horizon_cross_entropy(
            logits, targets, rows=rows, valid=valid, candidates=candidates, segments=segments,
            horizon_weights=self.horizon_weights, weight=self.class_weight, **self.options,
        )  # fmt: skip

    if TYPE_CHECKING:  # nn.Module's own takes and returns Any

        def __call__(
            self, logits: Tensor, targets: Tensor, *, rows: Tensor | None = None, valid: Tensor | None = None,
            candidates: Tensor | None = None, segments: Tensor | None = None,
        ) -> LossT: ...  # fmt: skip


class MultiHorizonLinearCrossEntropy(_Loss[LossT]):
    """Module form of `multi_horizon_linear_cross_entropy`. It has no head: weight and bias are passed to a call.

    Args:
        class_weight: [V] floats, a weight of each class. It is a buffer, and moves with the module.
        options: as in `MultiHorizonCrossEntropy`.

    Raises:
        TypeError, ValueError: an option is of the wrong type or out of range. A call raises what the function does.

    Examples:
        >>> head, criterion = torch.nn.Linear(32, 9), MultiHorizonLinearCrossEntropy(horizons=3)
        >>> loss = criterion(torch.randn(2, 9, 32), head.weight, torch.randint(0, 9, (2, 5)), bias=head.bias)
    """

    @overload
    def __init__(
        self: MultiHorizonLinearCrossEntropy[Tensor],
        *,
        class_weight: Tensor | Sequence[float] | None = None,
        return_metrics: Literal[False] = False,
        **options: Unpack[ModuleOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: MultiHorizonLinearCrossEntropy[tuple[Tensor, HorizonMetrics]],
        *,
        class_weight: Tensor | Sequence[float] | None = None,
        return_metrics: Literal[True],
        **options: Unpack[ModuleOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: MultiHorizonLinearCrossEntropy[Tensor | tuple[Tensor, HorizonMetrics]],
        *,
        class_weight: Tensor | Sequence[float] | None = None,
        return_metrics: bool,
        **options: Unpack[ModuleOptions],
    ) -> None: ...
    def __init__(self, *, class_weight: Tensor | Sequence[float] | None = None, **options: Any) -> None:
        super().__init__(class_weight=class_weight, **options)

    def forward(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None,
        rows: Tensor | None = None, valid: Tensor | None = None, candidates: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> LossT:  # fmt: skip
        """The loss, as `multi_horizon_linear_cross_entropy` returns it."""
        return multi_horizon_linear_cross_entropy(
            hidden, weight, targets, bias=bias, rows=rows, valid=valid, candidates=candidates, segments=segments,
            horizon_weights=self.horizon_weights, class_weight=self.class_weight, **self.options,
        )  # fmt: skip

    if TYPE_CHECKING:  # nn.Module's own takes and returns Any

        def __call__(
            self, hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None,
            rows: Tensor | None = None, valid: Tensor | None = None, candidates: Tensor | None = None,
            segments: Tensor | None = None,
        ) -> LossT: ...  # fmt: skip
