"""What fixes a planner beside the size of its mazes: every option is declared, described and checked here alone.

The planners take the fields as keywords and keep a PlannerConfig; the benchmark programs have a flag for each field of
PlannerOptions, with its docstring as the help; parity and weight files work on the same fields. A new option is a field
here and the lines of the block that reads it.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

__all__ = ["POH_ONLY", "OptionError", "PlannerConfig", "PlannerOptions", "PlannerShape", "positive"]


Kind = Literal["baseline", "poh"]


class OptionError(Exception):
    """An option that a planner cannot have; also a TypeError or a ValueError.

    Attributes:
        name, flag_words: the option, and what is wrong with the flag of this name.
        of_shape: whether it is wrong for the planner's shape only.
    """

    def __init__(self, message: str, name: str, flag_words: str, *, of_shape: bool = False) -> None:
        super().__init__(message)
        self.name, self.flag_words, self.of_shape = name, flag_words, of_shape


class _OptionType(OptionError, TypeError):
    pass


class _OptionValue(OptionError, ValueError):
    pass


def positive(**values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise _OptionType(f"{name} must be an int, got {value!r}", name, "must be at least 1")
        if value < 1:
            raise _OptionValue(f"{name} must be at least 1, got {value}", name, "must be at least 1")


def number(name: str, value: Any, *, flag_words: str = "must be a finite number", finite: bool = True) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _OptionType(f"{name} must be a number, got {value!r}", name, flag_words)
    if finite and not math.isfinite(value):
        raise _OptionValue(f"{name} must be finite, got {value}", name, flag_words)


class PlannerShape(NamedTuple):
    """The four numbers that fix the size of a planner.

    Attributes:
        d_model: width.
        n_heads: attention heads.
        d_ff: feed-forward width.
        depth: blocks.

    Examples:
        >>> model = BaselinePlanner(12, **PlannerShape(128, 4, 512, 2)._asdict())
    """

    d_model: int
    n_heads: int
    d_ff: int
    depth: int


@dataclass(frozen=True, kw_only=True)
class PlannerOptions:
    """The options of the planners that the programs have flags for. The defaults are the published form."""

    cell_features: Literal[1, 4, 6] = 4
    """Input features of a cell [count]. 4: its passage bits; learned vectors mark start and goal. 6: the passage bits
    and a bit each for start and goal."""  # 1: the published input, which does not show the walls
    maze_enc: bool = False
    """Add a small CNN over the whole maze (about 0.2 M parameters). Its summary is added to every cell."""
    R: int = 4
    """Passes of PoH, and of the looped baseline, over the stack of layers [count]. The cost grows with it."""
    T: int = 4
    """Period of PoH's slow router cell [passes]: it is updated at every T-th pass."""
    residual: Literal["rezero", "none"] = "rezero"
    """State of PoH after a pass. rezero: the old state plus a trained share of the change. none: the pass's result."""
    routing: Literal["pooled", "token"] = "pooled"
    """Granularity of PoH's routing weights. pooled: one for each head and maze. token: one for each head and cell (the
    row poh_token always has this)."""
    route_scale: float | Literal["heads"] = 1.0
    """Factor on PoH's routing weights. heads: the number of heads, with which uniform routing leaves attention at full
    strength."""
    valid_heads: int | Literal["all"] = 0
    """Attention heads of each layer that see only a cell and its passable neighbours [count, or all]; the others see
    all cells. With such heads --parity depth narrows the heads and keeps their number."""
    norm: Literal["published", "pre", "post"] = "published"
    """Place of the layer norm. pre: before each sublayer. post: after each residual. published: post in the baseline,
    pre in PoH."""
    head: Literal["cells", "moves"] = "cells"
    """Output of the policy for each cell. cells: a score of every cell as the next one. moves: a score of each of the
    four moves."""
    positions: Literal["absolute", "none"] = "absolute"
    """Position embedding. absolute: a learned vector for each cell. none: no such vector; with --head moves the planner
    then takes mazes of any size."""
    reinject: Literal["published", "on", "off"] = "published"
    """Add the embedded maze to the state again before each pass after the first. published: on in the looped baseline,
    off in PoH."""
    rest: float = 0.0
    """A cell that a pass would change by no more than this, in every feature, keeps its state, in training as at test
    [units of the state; its features have about 1]. So a cell that knows its move holds it, whatever its neighbours
    learn later, and if all heads see only neighbours, cells at rest cost nothing. PoH's routing weights rest likewise.
    0: every pass changes every cell."""
    dropout: float = 0.1
    """Dropout of the planners [probability, below 1]: after each sublayer, in it, and of the attention weights."""

    def planner(self, kind: Kind, shape: PlannerShape, **changes: Any) -> PlannerConfig:
        """A planner with these options, but for the changes."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(PlannerOptions)}
        return PlannerConfig(kind=kind, **shape._asdict(), **{**options, **changes})

    def evaluation_precision(self, precision: str) -> str:
        """In which a planner with these options is evaluated, where it is trained in `precision`: many passes without a
        graph have a kernel of their own, in float32, if heads see neighbours; and rounding would add up over them."""
        return "float32" if self.valid_heads else precision


POH_ONLY = ("T", "residual", "routing", "route_scale", "log_t")
_ALWAYS = (*PlannerShape._fields, "cell_features", "maze_enc", "dropout")  # in `keywords`
_ORDER = (*PlannerShape._fields, *(field.name for field in dataclasses.fields(PlannerOptions)))


@dataclass(frozen=True, kw_only=True)
class PlannerConfig(PlannerOptions):
    """Everything that fixes a planner but the size of its mazes, checked. Words become the numbers and bools that they
    stand for (valid_heads "all", route_scale "heads", reinject "on" and "off"), but for "published": see norm_used and
    reinject_used. d_model, n_heads, d_ff and depth are those of `PlannerShape`.

    Attributes:
        kind: "baseline" or "poh"; the baseline has none of the options POH_ONLY.
        attention_dropout: probability in [0, 1) for the attention weights. None: the same as dropout, as published. 0
            lets scaled_dot_product_attention use its fused CPU kernel in training.
        log_t: the softmax temperature of PoH's routers is max(0.7, exp(log_t)). It is not trained.

    Raises:
        OptionError: an option is of the wrong type (a TypeError, too) or out of range (a ValueError).

    Examples:
        >>> PlannerConfig(kind="poh", d_model=64, n_heads=4, d_ff=128, depth=1, valid_heads="all").valid_heads
        4
    """

    kind: Kind
    d_model: int
    n_heads: int
    d_ff: int
    depth: int
    attention_dropout: float | None = None
    log_t: float = 2.0

    @classmethod
    def of(cls, kind: Kind, keywords: dict[str, Any], **own: Any) -> PlannerConfig:
        """From the keywords of a planner's constructor, and options that have another name there."""
        known = {field.name for field in dataclasses.fields(cls)} - {"kind", *own}
        for name in keywords:
            if name not in known - set(POH_ONLY if kind == "baseline" else ()):
                raise TypeError(f"a {kind} planner got an unexpected keyword argument {name!r}")
        return cls(kind=kind, **keywords, **own)

    @classmethod
    def signature(cls, kind: Kind) -> inspect.Signature:
        """That of the constructor of a planner of this kind."""
        parameters = [inspect.Parameter("size", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        missing = inspect.Parameter.empty
        for field in sorted(dataclasses.fields(cls), key=lambda field: field.default is not dataclasses.MISSING):
            if field.name == "kind" or (kind == "baseline" and field.name in POH_ONLY):
                continue
            default = missing if field.default is dataclasses.MISSING else field.default
            name, default = ("loops", 1) if kind == "baseline" and field.name == "R" else (field.name, default)
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default))
        return inspect.Signature(parameters)

    def keywords(self) -> dict[str, Any]:
        """The keywords that build this planner. What is as published is left to its defaults."""
        values = {name: getattr(self, name) for name in (*_ORDER, "attention_dropout", "log_t")}
        kept = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default}
        kept |= set(_ALWAYS) | {"R", "T"}
        if self.kind == "poh":
            return {name: value for name, value in values.items() if name in kept}
        kept -= {*POH_ONLY, *(("R",) if self.R == 1 else ())}
        return {"loops" if name == "R" else name: value for name, value in values.items() if name in kept}

    @property
    def norm_used(self) -> str:
        """Layer norm "pre" each sublayer, or "post" each residual, which bounds the state over any number of passes."""
        return {"baseline": "post", "poh": "pre"}[self.kind] if self.norm == "published" else self.norm

    @property
    def reinject_used(self) -> bool:
        """Whether the embedded maze is added to the state again before each pass after the first."""
        return self.kind == "baseline" if self.reinject == "published" else bool(self.reinject)

    def __post_init__(self) -> None:
        positive(
            **{
                "loops" if self.kind == "baseline" else "R": self.R,
                "T": self.T,
                "d_model": self.d_model,
                "n_heads": self.n_heads,
                "d_ff": self.d_ff,
                "depth": self.depth,
            }
        )
        meanings: dict[str, dict[str, Any]] = {
            "valid_heads": {"all": self.n_heads},
            "route_scale": {"heads": float(self.n_heads)},
            "reinject": {"on": True, "off": False},
        }
        for name, words in meanings.items():
            value = getattr(self, name)
            if isinstance(value, str) and value in words:
                object.__setattr__(self, name, words[value])
        self._check()

    def _check(self) -> None:
        for name in ("dropout", "attention_dropout"):
            value, words = getattr(self, name), "must be at least 0 and below 1"
            if name == "dropout" or value is not None:
                number(name, value, flag_words=words, finite=False)
                if not 0 <= value < 1:  # NaN, which compares false, is refused
                    raise _OptionValue(f"{name} must be in [0, 1), got {value}", name, words)
        words = "must be a finite number, at least 0"
        number("rest", self.rest, flag_words=words)
        if self.rest < 0:
            raise _OptionValue(f"rest must be at least 0, got {self.rest}", "rest", words)
        if self.d_model % self.n_heads:
            raise _OptionValue(
                f"d_model must be divisible by n_heads, got d_model={self.d_model}, n_heads={self.n_heads}",
                "n_heads",
                f"must divide --d-model {self.d_model}",
                of_shape=True,
            )
        if self.cell_features not in (1, 4, 6):
            raise _OptionValue(
                "cell_features must be 1 (published), 4 (passage bits) or 6 (passage bits, start, "
                f"goal), got {self.cell_features!r}",
                "cell_features",
                "must be one of 4, 6",
            )
        heads, words = self.valid_heads, "must be at least 0, or all"
        if isinstance(heads, bool) or not isinstance(heads, Integral):
            raise _OptionType(f"valid_heads must be an int, got {heads!r}", "valid_heads", words)
        if not 0 <= heads <= self.n_heads:
            raise _OptionValue(
                f"valid_heads must be from 0 to n_heads={self.n_heads}, got {heads}",
                "valid_heads",
                words if heads < 0 else f"at most the {self.n_heads} heads",
                of_shape=heads > 0,
            )
        for name in ("kind", "norm", "head", "positions", "residual", "routing"):
            accepted, value = typing.get_args(_HINTS[name]), getattr(self, name)
            if value not in accepted:
                words = " or ".join(repr(word) for word in accepted if word != "published")
                raise _OptionValue(
                    f"{name} must be {words}, got {value!r}", name, f"must be one of {', '.join(accepted)}"
                )
        if not isinstance(self.reinject, bool) and self.reinject != "published":
            raise _OptionValue(
                f"reinject must be True or False, got {self.reinject!r}",
                "reinject",
                "must be one of published, on, off",
            )
        words = "must be a finite number above 0, or heads"
        number("route_scale", self.route_scale, flag_words=words)
        if self.route_scale <= 0:
            raise _OptionValue(f"route_scale must be positive, got {self.route_scale}", "route_scale", words)
        number("log_t", self.log_t)


_HINTS = typing.get_type_hints(PlannerConfig)
