"""Go on with an interrupted run: find it, make sure that it is the same run, keep what it finished.

A run is continued only where its finished rows are those that this run would produce, bit for bit: same options, same
device, precision, threads and versions. Anything else is another run, and the first difference is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from poh_ext.results import Results, plain
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.output import in_use
from poh_ext.training.validation import ConfigError, flag

__all__ = ["find_interrupted", "first_difference", "identity"]

# No result depends on these. Device and precision are compared as what was chosen, not as asked: see _COMPARED.
NOT_COMPARED = ("output", "overwrite", "resume", "dry_run", "quick", "preset", "cpu", "device", "precision",
                "save_weights", "tensorboard", "ray")  # fmt: skip
# Parts of the environment that decide results.
_COMPARED = (("device",), ("precision",), ("versions", "torch"), ("versions", "poh_ext"), ("hardware", "cpu"),
             ("hardware", "threads"), ("processes",), ("backend_info",))  # fmt: skip


def identity(experiment: str, config: dict[str, Any], environment: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """What decides the results of a run, or with `parts` (row=..., seed=...) of a part of it, as plain values."""
    deciding = {name: value for name, value in config.items() if name not in NOT_COMPARED}
    compared = {" ".join(path): _at(environment, path) for path in _COMPARED}
    everything = plain({"experiment": experiment, "parts": parts, "config": deciding, "environment": compared})
    return json.loads(json.dumps(everything))  # torch.__version__ is a str only by inheritance


def first_difference(earlier: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What makes one `identity` another one than that of this run, in words; None if nothing does."""
    if earlier["experiment"] != now["experiment"]:
        return f"it is {earlier['experiment']!r}, not {now['experiment']!r}"
    for name, value in now["parts"].items():
        if earlier["parts"].get(name) != value:
            return f"{name} was {_show(earlier['parts'].get(name))}, not {_show(value)}"
    then, config = earlier["config"], now["config"]
    for name in dict.fromkeys((*config, *then)):
        if name not in then or name not in config:
            return f"{flag(name)} is known to one of the two versions only"
        if then[name] != config[name]:
            return f"{flag(name)} was {_show(then[name])}, not {_show(config[name])}"
    for name, value in now["environment"].items():
        if earlier["environment"].get(name) != value:
            return f"{name} was {_show(earlier['environment'].get(name))}, not {_show(value)}"
    return None


def find_interrupted(config: BenchmarkConfig, environment: dict[str, Any]) -> tuple[Path | None, Results | None, str]:
    """(folder, its results, why not more) of the run to go on with, in --output or one of its numbered siblings.

    With --resume a complete run counts too: there is nothing left to do in it.

    Raises:
        ConfigError: --resume, and there is no such run; the message says what is different about --output's.
    """
    why = ""
    for folder in _siblings(config.output.expanduser()):
        try:
            earlier = Results.load(folder / "results.json")
        except (ValueError, OSError) as error:
            found = f"{folder}: {error}" if (folder / "results.json").exists() else f"{folder} holds no results.json"
            why = why or found
            continue
        different = first_difference(identity(earlier.experiment, earlier.config, earlier.environment),
                                     identity(config.title, config.to_dict(), environment))
        if different is not None:
            why = why or f"{folder} holds another run: {different}"
        elif in_use(folder):
            why = why or f"the run in {folder} is still going on"
        elif earlier.status == "interrupted" or config.resume:
            return folder, earlier, ""
    if config.resume:
        raise ConfigError(f"--resume: nothing to go on with; {why or f'{config.output} does not exist'}")
    return None, None, why


def _siblings(folder: Path) -> Iterator[Path]:
    candidate, number = folder, 1
    while candidate.is_dir():
        yield candidate
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")


def _at(record: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if not isinstance(v, dict))
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
