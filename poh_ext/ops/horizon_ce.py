"""Multi-horizon cross-entropy: chooses the backend."""

from __future__ import annotations

from poh_ext.reference.horizon_ce import horizon_ce

__all__ = ["horizon_ce"]
