"""What a provider's model can do, as `python -m nexa_distill.probe` found it.

One file per provider, `storage.journal`/capabilities/PROVIDER.json: provider, model, base_url,
probed_at (UTC) and, by capability, `has` (true, false, or null = not known) with the evidence. It
counts only for the model and address that were probed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.atomic import write_json

COMMAND = "python -m nexa_distill.probe"
# In the order in which they are shown; the plan names those that decide about settings.
CAPABILITIES = {
    "models": "lists the model",
    "completion": "answers",
    "usage": "reports its tokens",
    "json_schema": "keeps to a JSON schema",
    "logprobs": "returns log probabilities",
    "reasoning": "keeps reasoning apart from the answer",
    "seed": "accepts a seed",
    "n": "gives several answers at once",
}
IN_PLAN = {"json_schema": "json schema", "logprobs": "logprobs", "usage": "usage"}
WORDS = {True: "yes", False: "no", None: "not known"}


@dataclass(frozen=True)
class Finding:
    """`has` is None when it could not be found out."""

    has: bool | None
    evidence: str


@dataclass(frozen=True)
class Capabilities:
    """What was found. `base_url` is None for a server that we start."""

    provider: str
    model: str
    base_url: str | None
    probed_at: str
    found: Mapping[str, Finding]

    def has(self, name: str) -> bool | None:
        """Whether the model can do that; None = not known."""
        return self.found[name].has if name in self.found else None

    @property
    def date(self) -> str:
        """The day of the probe."""
        return self.probed_at[:10]


def cache_path(config: DistillConfig, provider: str) -> Path:
    """Where the findings about a provider are kept."""
    return config.storage.path("journal") / "capabilities" / f"{provider}.json"


def save(config: DistillConfig, found: Capabilities) -> Path:
    """Replace what was known about the provider."""
    path = cache_path(config, found.provider)
    write_json(path, asdict(found))
    return path


def load(config: DistillConfig, provider: str, model: str) -> Capabilities | None:
    """The findings, or None when there are none about this model at this address."""
    try:
        stored = json.loads(cache_path(config, provider).read_text(encoding="utf-8"))
        findings = {name: Finding(**finding) for name, finding in stored.pop("found").items()}
        found = Capabilities(**stored, found=findings)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # absent, or not written by this version: probe again
    now = (provider, model, config.providers[provider].base_url)
    return found if (found.provider, found.model, found.base_url) == now else None


def plan_line(config: DistillConfig, provider: str, model: str) -> str:
    """What is known about the provider, in a line."""
    found = load(config, provider, model)
    if found is None:
        return f"{provider} {model}: not probed: {COMMAND} --provider {provider}"
    shown = ", ".join(f"{text} {WORDS[found.has(name)]}" for name, text in IN_PLAN.items())
    return f"{provider} {model}: {shown} (probed {found.date})"


def schema_warning(
    config: DistillConfig, provider: str, model: str, needed: str | None = None
) -> str | None:
    """What to know before schemas are sent to a model that does not keep to them, or None.

    `needed`: what they are sent for; None: for what `collection.response_schemas` says.
    """
    tasks = ", ".join(config.collection.response_schemas)
    if tasks and needed is None:
        needed = f"collection.response_schemas asks it to for {tasks}"
    found = load(config, provider, model)
    if not needed or found is None or found.has("json_schema") is not False:
        return None
    said = found.found["json_schema"].evidence
    return (
        f"warning: {provider} {model} did not keep to a JSON schema when it was probed on "
        f"{found.date} ({said}); {needed}"
    )


def table(found: Capabilities) -> list[str]:
    """For a person, a line per capability."""
    lines = [f"{found.provider} {found.model} ({found.base_url or 'its own server'}), {found.date}"]
    for name, text in CAPABILITIES.items():
        finding: Any = found.found.get(name, Finding(None, ""))
        lines.append(f"  {text:<38} {WORDS[finding.has]:<9}  {finding.evidence}")
    return lines
