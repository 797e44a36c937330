"""A finished student is not replaced unasked: not by other input, nor by another limit or setting.

Human decisions are no other settings: after them the next launch trains again, as documented.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from nexa_distill.errors import Locked
from nexa_distill.orchestration.freshness import Freshness
from nexa_distill.orchestration.frozen_config import changed_settings
from nexa_distill.orchestration.planning import Step
from nexa_distill.orchestration.run_folder import frozen_config_path, latest_run
from nexa_distill.orchestration.stages import CHECKPOINT, STAGES, locate_path
from nexa_distill.settings.pipeline import DistillConfig, load_config
from nexa_distill.storage.atomic import Json
from nexa_distill.storage.manifests import load_manifest
from nexa_distill.text.hashing import compact_json

# What these write took money or hours; a gate decides again in a second, and is run by name to try a threshold.
COSTLY = {"data_gen", "training", "evaluation"}
# A changed decision changes what the first notes and what the second plans.
_BY_DECISIONS = {"person", "regenerate"}
MOST_KEYS = 3  # of the changed settings that are named


def explain_replacement(steps: Iterable[Step], fresh: Freshness) -> str | None:
    """What these sessions would replace, and why it would differ; None if nothing finished is lost."""
    finished = [path for path, manifest in _results(fresh.config) if manifest]
    running = {step.session for step in steps if step.runs}
    if not finished or not running & COSTLY or not (reasons := _differences(fresh, running)):
        return None
    because, keys = next(iter(reasons.values())), _changed_keys(fresh.config)
    return f"{finished[0]}{_headline(fresh.config)}, because {because}{f' ({keys})' if keys else ''}"


def _results(config: DistillConfig) -> list[tuple[Path, Json | None]]:
    paths = [locate_path(key, config) for key in (CHECKPOINT, "student_outputs")]
    return [(path, load_manifest(path, config.storage) if path.exists() else None) for path in paths]


def _differences(fresh: Freshness, sessions: set[str]) -> dict[str, str]:
    """By stage of these sessions, what differs from what its finished output was made from."""
    reasons = {s.name: why for s in STAGES if s.session in sessions and (why := fresh.find_difference(s))}
    if "person" in reasons:
        reasons = {name: why for name, why in reasons.items() if name not in _BY_DECISIONS}
    (checkpoint, _), (_, answers) = _results(fresh.config)
    if answers and "evaluation" in sessions and str(checkpoint) not in {item["path"] for item in answers["inputs"]}:
        reasons.setdefault("evaluation", f"{checkpoint} is another student than the one evaluated")
    return reasons


def refuse_replacement(steps: Iterable[Step], fresh: Freshness) -> None:
    """Raises Locked (75) if these sessions would replace a finished student by another one."""
    if lost := explain_replacement(steps, fresh):
        raise Locked(
            f"this launch would replace {lost}. `--name NAME` makes another run beside it; "
            "`--replace` replaces it; the settings as they were leave it as it is"
        )


def _headline(config: DistillConfig) -> str:
    try:
        report = json.loads(config.storage.path_of("evaluation_report").read_text(encoding="utf-8"))
        return f" ({report['headline'][0]})"
    except (OSError, ValueError, LookupError):
        return ""


def _changed_keys(config: DistillConfig) -> str:
    """The settings that differ from those of the last launch, if it recorded them."""
    last = latest_run(Path(config.storage.logs).resolve(), config.storage.root)
    frozen = last and frozen_config_path(last)
    if not frozen:
        return ""
    changed = changed_settings(load_config(frozen), config)
    words = [f"{key} was {compact_json(before)}, is {compact_json(now)}" for key, (before, now) in changed.items()]
    return ", ".join([*words[:MOST_KEYS], *(["..."] if len(words) > MOST_KEYS else [])])
