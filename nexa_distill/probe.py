"""Probe the capabilities of a provider's model with a few small requests.

Reads:  the configuration; GET /models of the provider
Writes: `storage.journal`/capabilities/PROVIDER.json, which `pipeline plan` shows
Keeps:  every request in `storage.journal`/probe.sqlite: it counts in the budget and is sent again
        only with --refresh
Raises: as collect_teacher: ProviderUnusable (69), BudgetReached (77)

Schemas are supported if the answer satisfies one although the question asks for a sentence; a seed,
if the API accepts it (equal answers are not tested).

Run: python -m nexa_distill.probe [--provider NAME] [--model MODEL] [--refresh]
"""

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nexa_distill.collection import capabilities
from nexa_distill.collection.capabilities import Capabilities
from nexa_distill.collection.capability_tests import (
    PROBE_SCHEMA,
    ProbeReply,
    check_model_listed,
    collect_findings,
    shorten_text,
)
from nexa_distill.collection.client import ApiClient
from nexa_distill.collection.requests.body import LIMIT_KEYS, PromptRequest, prompt_request, request_body
from nexa_distill.collection.requests.budget import BudgetTracker, refuse_unpriced
from nexa_distill.collection.requests.connections import fetch_models
from nexa_distill.collection.requests.endpoint import Endpoint, open_endpoint
from nexa_distill.collection.requests.model_run import ModelRun
from nexa_distill.collection.requests.retry_policy import give_up_reason
from nexa_distill.console import cli
from nexa_distill.console.progress import Progress
from nexa_distill.errors import ProviderUnusable
from nexa_distill.journal.journal import Journal, PendingRequest
from nexa_distill.settings.pipeline import DistillConfig, Provider, load_config, with_address
from nexa_distill.storage.manifests import run_id, utc_now
from nexa_distill.text.hashing import sha256_text

SYSTEM, QUESTION = "You answer briefly.", "How many legs has a spider? Answer in one sentence."
ANSWER_TOKENS = 256  # at most; enough for a model that thinks first
ATTEMPTS = 2
# Capability -> what its request contains besides the first one.
QUESTIONS: dict[str, dict[str, Any]] = {
    "completion": {},
    "json_schema": PROBE_SCHEMA.request_options("probe"),
    "logprobs": {"logprobs": True},
    "seed": {"seed": 7},
    "n": {"n": 2},
}


@dataclass(frozen=True)
class Probe:
    """A probe of one model of one provider."""

    config: DistillConfig
    name: str
    model: str

    @property
    def provider_settings(self) -> Provider:
        return self.config.providers[self.name]

    def run(self, *, refresh: bool = False) -> Capabilities:
        """The stored capabilities, or new ones. Errors as those of `ApiClient.send_all`."""
        if not refresh and (stored := capabilities.load_capabilities(self.config, self.name, self.model)):
            return stored
        refuse_unpriced(self.config.budget, self.name, self.provider_settings, self.model)
        path = self.config.storage.path_of("journal") / "probe.sqlite"
        with Journal(path, run_id()) as journal:
            questions = self._newest_questions(journal, refresh)
            asking = self._unanswered_questions(journal, questions)
            self._print_plan(asking)
            with open_endpoint(self.name, self.provider_settings, self.model) as endpoint:
                if asking:
                    self._ask_questions(journal, asking, endpoint)
                models = asyncio.run(fetch_models(endpoint))
            replies = {name: _load_reply(journal, request) for name, request in questions.items()}
        self._require_answer(replies["completion"], endpoint)
        results = {"models": check_model_listed(models, endpoint.model)} | collect_findings(replies)
        base_url = self.provider_settings.base_url
        probed = Capabilities(self.name, self.model, base_url, utc_now(), results)
        capabilities.save_capabilities(self.config, probed)
        return probed

    def _newest_questions(self, journal: Journal, refresh: bool) -> dict[str, PromptRequest]:
        """The newest round of questions that was started; with `refresh`, one more."""
        begun = 0
        # Rounds are numbered: the first without a request has not been started.
        while journal.load_states([self._build_questions(begun)["completion"].key]):
            begun += 1
        return self._build_questions(begun if refresh else max(begun - 1, 0))

    def _build_questions(self, round_: int) -> dict[str, PromptRequest]:
        provider, requests = self.provider_settings, {}
        regenerates = self.model == provider.regen_model != provider.model
        options = provider.extra_body | (provider.regen_extra_body if regenerates else {})
        for name, asked in QUESTIONS.items():
            extra = options | asked
            body = request_body(SYSTEM, QUESTION, self.model, self.config, provider, extra)
            limits = body.keys() & set(LIMIT_KEYS)
            body |= dict.fromkeys(limits, ANSWER_TOKENS)
            request = prompt_request(name, body, round_=round_)
            where = provider.base_url or self.name  # another address is another question
            requests[name] = replace(request, key=sha256_text(f"{where}|{request.key}"))
        return requests

    def _unanswered_questions(self, journal: Journal, questions: Mapping[str, PromptRequest]) -> list[PendingRequest]:
        price, pending = self.provider_settings.prices.get(self.model), []
        known = journal.load_states(request.key for request in questions.values())
        for request in questions.values():
            before = known.get(request.key)
            if before and (before.has_answer or give_up_reason(before.attempts, sys.maxsize)):
                continue
            prompt, answer = len(request.data) // 3, ANSWER_TOKENS * request.body.get("n", 1)
            usd = price.answer_cost(prompt, answer) if price else 0.0
            id_ = before.id if before else None
            tokens = prompt + answer
            pending.append(PendingRequest(id_, request.key, request.sample_id, request.data, tokens, usd))
        return pending

    def _print_plan(self, asking: list[PendingRequest]) -> None:
        usd = sum(a.most_usd for a in asking)
        cost = f"at most ${usd:.6f}" if self.model in self.provider_settings.prices else "unpriced"
        print(
            f"probe: sends {self.name} ({self.provider_settings.base_url or 'its own server'}) {self.model} "
            f"a request for its models and {len(asking)} questions of at most {ANSWER_TOKENS} "
            f"answer tokens, {cost}",
            flush=True,
        )

    def _ask_questions(self, journal: Journal, asking: list[PendingRequest], endpoint: Endpoint) -> None:
        # One at a time, so that a refusal of the whole API stops the probe immediately.
        changes = {"concurrency": 1, "max_attempts": ATTEMPTS, "stop_on_model_change": False}
        settings = self.config.collection.model_copy(update=changes)
        config = self.config.model_copy(update={"collection": settings})
        tally = BudgetTracker(config.budget, journal.usage_of_all_journals())
        with Progress("probe", len(asking)) as progress:
            ApiClient(ModelRun(endpoint, config, self.model, journal, tally, progress)).run(iter([asking]))

    def _require_answer(self, plain: ProbeReply, endpoint: Endpoint) -> None:
        if plain.parsed_answer.flag == "malformed":
            raise ProviderUnusable(
                f"provider {self.name} ({endpoint.base_url}) does not answer a plain question: "
                f"{shorten_text(plain.response_text)}; check base_url, model ({endpoint.model}) and extra_body, "
                "then run again with --refresh"
            )


def _load_reply(journal: Journal, request: PromptRequest) -> ProbeReply:
    stored = journal.newest_answers([request.key]).get(request.key)
    known = journal.load_states([request.key])[request.key]
    refused = bool(give_up_reason(known.attempts, sys.maxsize))
    return ProbeReply(stored, refused, journal.last_response_text(request.key))


def main() -> None:
    parser = cli.build_parser(__doc__)
    add = parser.add_argument
    add("--provider", metavar="NAME", help="a key of providers: in the configuration")
    add("--base-url", metavar="URL", help="another address for this provider")
    add("--model", metavar="MODEL", help="default: collection.teacher_model, or the provider's")
    add("--api-key-env", metavar="NAME", help="environment variable that holds the key")
    add("--refresh", action="store_true", help="probe again")
    args = parser.parse_args()
    config = load_config(args.config)
    name, _ = config.chosen_provider(args.provider)
    config = with_address(config, name, args.base_url, args.api_key_env)
    model = args.model or config.collection.teacher_model or config.providers[name].model
    probed = Probe(config, name, model).run(refresh=args.refresh)
    print("\n".join(capabilities.capability_table(probed)))
    print(f"probe: {capabilities.capabilities_path(config, name)}; --refresh probes again")


if __name__ == "__main__":
    cli.run(main)
