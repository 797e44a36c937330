"""Capabilities of a provider's model, as measured by `python -m nexa_distill.probe`.

One file per provider, `storage.journal`/capabilities/PROVIDER.json: provider, model, base_url,
probed_at (UTC) and, by capability, `has` (true, false, or null = not known) with the evidence. It
is valid only for the model and address that were probed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.storage.atomic import write_json

COMMAND = "python -m nexa_distill.probe"
CAPABILITIES = {  # in the order of the printed table
    "models": "lists the model",
    "completion": "answers",
    "usage": "reports its tokens",
    "json_schema": "keeps to a JSON schema",
    "logprobs": "returns log probabilities",
    "reasoning": "keeps reasoning apart from the answer",
    "seed": "accepts a seed",
    "n": "gives several answers at once",
}
# Those that settings depend on.
IN_PLAN = {"json_schema": "json schema", "logprobs": "logprobs", "usage": "usage"}
SUPPORT_WORDS = {True: "yes", False: "no", None: "not known"}


@dataclass(frozen=True)
class Finding:
    """The result for one capability; `has` is None if the probe could not decide."""

    has: bool | None
    evidence: str


@dataclass(frozen=True)
class Capabilities:
    """The findings about a model. `base_url` is None for a server that we start."""

    provider: str
    model: str
    base_url: str | None
    probed_at: str
    found: Mapping[str, Finding]

    def has_capability(self, name: str) -> bool | None:
        return self.found[name].has if name in self.found else None

    @property
    def probe_date(self) -> str:
        return self.probed_at[:10]


def capabilities_path(config: DistillConfig, provider: str) -> Path:
    return config.storage.path_of("journal") / "capabilities" / f"{provider}.json"


def save_capabilities(config: DistillConfig, capabilities: Capabilities) -> Path:
    path = capabilities_path(config, capabilities.provider)
    write_json(path, asdict(capabilities))
    return path


def load_capabilities(config: DistillConfig, provider: str, model: str) -> Capabilities | None:
    try:
        stored = json.loads(capabilities_path(config, provider).read_text(encoding="utf-8"))
        findings = {name: Finding(**finding) for name, finding in stored.pop("found").items()}
        probed = Capabilities(**stored, found=findings)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # absent, or written by another version: probe again
    # Another model or address has other capabilities.
    now = (provider, model, config.providers[provider].base_url)
    return probed if (probed.provider, probed.model, probed.base_url) == now else None


def plan_line(config: DistillConfig, provider: str, model: str) -> str:
    probed = load_capabilities(config, provider, model)
    if probed is None:
        return f"{provider} {model}: not probed: {COMMAND} --provider {provider}"
    shown = ", ".join(f"{text} {SUPPORT_WORDS[probed.has_capability(name)]}" for name, text in IN_PLAN.items())
    return f"{provider} {model}: {shown} (probed {probed.probe_date})"


def schema_warning(config: DistillConfig, provider: str, model: str, needed: str | None = None) -> str | None:
    """`needed`: the reason to send schemas; None = the tasks of `collection.response_schemas`."""
    tasks = ", ".join(config.collection.response_schemas)
    if tasks and needed is None:
        needed = f"collection.response_schemas asks it to for {tasks}"
    probed = load_capabilities(config, provider, model)
    # Only a measured no warns; not known is no reason to.
    if not needed or probed is None or probed.has_capability("json_schema") is not False:
        return None
    return (
        f"warning: {provider} {model} did not keep to a JSON schema when it was probed on "
        f"{probed.probe_date} ({probed.found['json_schema'].evidence}); {needed}"
    )


def capability_table(probed: Capabilities) -> list[str]:
    address = probed.base_url or "its own server"
    lines = [f"{probed.provider} {probed.model} ({address}), {probed.probe_date}"]
    for name, text in CAPABILITIES.items():
        finding: Any = probed.found.get(name, Finding(None, ""))
        lines.append(f"  {text:<38} {SUPPORT_WORDS[finding.has]:<9}  {finding.evidence}")
    return lines
