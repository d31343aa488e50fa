"""What multi_horizon_cross_entropy says of arguments it does not accept."""

import math

import pytest
import torch

from poh_ext import multi_horizon_cross_entropy
from tests.cases.device import DEVICE
from tests.cases.losses import problem

BAD_CALLS = {
    "logits type": ({"logits": [1.0]}, TypeError, "logits must be a tensor, got list"),
    "logits dtype": ({"logits": torch.zeros(3, 7, 11, dtype=torch.int64)}, TypeError, "logits must be float32"),
    "logits shape": ({"logits": torch.zeros(7, 11)}, ValueError, r"logits must have shape \[B, N, V\], got \[7, 11\]"),
    "targets dtype": ({"targets": torch.zeros(3, 6).short()}, TypeError, "targets must be int64 or int32, got int16"),
    "targets batch": ({"targets": torch.zeros(2, 6, dtype=torch.int64)}, ValueError, r"targets must have shape \[3, L"),
    "targets device": ({"targets": torch.zeros(3, 6, device="meta").long()}, ValueError, f"on {DEVICE}.*, as the"),
    "rows shape": ({"rows": torch.zeros(3, 5, dtype=torch.int64)}, ValueError, r"rows must have shape \[3, 6\]"),
    "rows dtype": ({"rows": torch.zeros(3, 6)}, TypeError, "rows must be int64 or int32"),
    "too long": ({"rows": None, "targets": torch.zeros(3, 9, dtype=torch.int64)}, ValueError, "9 positions .* 7 rows"),
    "too long for 0": ({"rows": None, "targets": torch.zeros(3, 8).long(), "horizons": [0]}, ValueError, "8 positions"),
    "segments shape": ({"segments": torch.zeros(3, 5).long()}, ValueError, r"segments must have shape \[3, 6\]"),
    "segments dtype": ({"segments": torch.zeros(3, 6)}, TypeError, "segments must be int64 or int32, got float32"),
    "horizons": ({"horizons": 0}, ValueError, "horizons must be at least 1, got 0"),
    "horizons type": ({"horizons": 1.0}, TypeError, "horizons must be an int or a sequence of ints, got float"),
    "horizons bool": ({"horizons": True}, TypeError, "horizons must be an int or a sequence of ints, got bool"),
    "horizons high": ({"horizons": 10**20}, ValueError, "horizons must be at most 2147483647, got 1000"),
    "offset high": ({"horizons": [0, 10**20]}, ValueError, "horizons must be offsets of at most 2147483647, got"),
    "no horizons": ({"horizons": []}, ValueError, r"distinct offsets of at least 0, and one at least, got \[\]"),
    "offset low": ({"horizons": [0, -1]}, ValueError, r"distinct offsets of at least 0, .* got \[0, -1\]"),
    "offset twice": ({"horizons": [1, 1]}, ValueError, r"distinct offsets of at least 0, .* got \[1, 1\]"),
    "offset type": ({"horizons": [1, 2.0]}, TypeError, r"a sequence of ints, got \[1, 2.0\]"),
    "offsets text": ({"horizons": "12"}, TypeError, "a sequence of ints, got str"),
    "offset target": ({"horizons": [0, 2], "targets": (3, 11)}, IndexError, r"targets\[1, 4\] is 11, but there are 11"),
    "smoothing": ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
    "smoothing nan": ({"label_smoothing": math.nan}, ValueError, "label_smoothing"),
    "ignore_index": ({"ignore_index": None}, TypeError, "ignore_index must be an int"),
    "reduction": ({"reduction": "avg"}, ValueError, "reduction must be one of mean, sum, .* got 'avg'"),
    "valid shape": ({"valid": torch.ones(3, 7, 10, dtype=torch.bool)}, ValueError, r"valid must have shape \[3, 7, 11"),
    "valid dtype": ({"valid": torch.ones(3, 7, 11)}, TypeError, "valid must be bool"),
    "candidates": ({"candidates": torch.zeros(3, 6, 4, dtype=torch.int64)}, ValueError, "candidates must have shape"),
    "both masks": (
        {"valid": torch.ones(3, 7, 11, dtype=torch.bool), "candidates": torch.zeros(3, 7, 4, dtype=torch.int64)},
        ValueError,
        "at most one of the two",
    ),
    "weights number": ({"horizon_weights": [1.0, 2.0]}, ValueError, r"horizon_weights must have shape \[1\], got \[2"),
    "weights of text": ({"horizon_weights": ["a"]}, TypeError, r"horizon_weights must be .* of floats, got \['a'\]"),
    "weights of None": ({"horizon_weights": [None]}, TypeError, r"horizon_weights must be .* of floats, got \[None\]"),
    "weights type": ({"horizon_weights": 2.0}, TypeError, "horizon_weights must be a tensor or a sequence"),
    "weights dtype": ({"horizon_weights": torch.tensor([1])}, TypeError, "horizon_weights must be float32"),
    "weights grad": ({"horizon_weights": torch.ones(1, requires_grad=True)}, ValueError, "must not require a gradient"),
    "weight number": ({"weight": [1.0]}, ValueError, r"weight must have shape \[11\], got \[1\]"),
    "weight grad": ({"weight": torch.ones(11, requires_grad=True)}, ValueError, "weight must not require a gradient"),
    "metrics type": ({"return_metrics": "yes"}, TypeError, "return_metrics must be a bool, got str"),
    "z_loss": ({"z_loss": -1.0}, ValueError, r"z_loss must be from 0 to 1e\+30, got -1.0"),
    "z_loss of no float32": ({"z_loss": 1e39}, ValueError, r"z_loss must be from 0 to 1e\+30, got 1e\+39"),
    "z_loss type": ({"z_loss": torch.tensor(0.1)}, TypeError, "z_loss must be a number, got Tensor"),
    "softcap": ({"softcap": 0.0}, ValueError, r"softcap must be from 1e-30 to 1e\+30, or None for no cap, got 0.0"),
    "softcap of no float32": ({"softcap": 1e-46}, ValueError, r"softcap must be from 1e-30 to 1e\+30"),
    "softcap type": ({"softcap": "3"}, TypeError, "softcap must be a number, got str"),
    "smoothing type": ({"label_smoothing": True}, TypeError, "label_smoothing must be a number, got bool"),
    "ignore_index size": ({"ignore_index": 2**70}, ValueError, "ignore_index must be a 64-bit integer, got 1180"),
    "target high": ({"targets": (3, 11)}, IndexError, r"targets\[1, 4\] is 11, but there are 11 classes"),
    "target low": ({"targets": (3, -7)}, IndexError, r"targets\[1, 4\] is -7, .*ignore_index is -1"),
    "row high": ({"rows": (2, 7)}, IndexError, r"rows\[1, 4\] is 7, but there are 7 rows"),
    "row low": ({"rows": (2, -2)}, IndexError, r"rows\[1, 4\] is -2, but there are 7 rows \(-1 skips a position\)"),
    "row low, class ignored": (
        {"rows": (2, -2), "ignore_index": 3, "targets": torch.full((3, 6), 3)},
        IndexError,
        r"rows\[1, 4\] is -2, but there are 7 rows \(-1 skips a position\)",
    ),
    "row low, -100 ignored": (
        {"rows": (2, -7), "ignore_index": -100, "targets": torch.full((3, 6), 3)},
        IndexError,
        r"is -7, .* \(-1 skips a position, and so does the ignore_index -100\)",
    ),
    "candidate": ({"candidates": (3, 11)}, IndexError, r"candidates\[1, 4, 2\] is 11, but there are 11 classes"),
    "candidate low": ({"candidates": (3, -2)}, IndexError, r"candidates\[1, 4, 2\] is -2, .*-1 pads"),
}


@pytest.mark.parametrize("change, error, text", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_arguments_are_named(change, error, text):
    logits, targets, kwargs = problem()
    kwargs |= {"logits": logits, "targets": targets}
    for name, value in change.items():
        if isinstance(value, tuple):  # good everywhere, but bad at [1, 4] and later
            good, bad = value
            t = torch.full((3, 7, 4) if name == "candidates" else (3, 6), good)
            t[(1, 4, 2)[: t.dim()]] = bad
            t[2] = bad
            value = t
        kwargs[name] = value
    with pytest.raises(error, match=text):
        multi_horizon_cross_entropy(**kwargs)
