"""What a client needs for one run: an endpoint, a journal, and a budget."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nexa_distill.collection.requests.budget import BudgetTracker
from nexa_distill.collection.requests.endpoint import Endpoint, open_endpoint
from nexa_distill.console.progress import Progress
from nexa_distill.journal.journal import Journal
from nexa_distill.settings.pipeline import DistillConfig, Price, Provider


@dataclass(frozen=True)
class ModelRun:
    """One run of one stage with one model."""

    endpoint: Endpoint
    config: DistillConfig
    model: str  # as in the settings
    journal: Journal
    tally: BudgetTracker
    progress: Progress

    @property
    def provider_settings(self) -> Provider:
        return self.config.providers[self.endpoint.provider]

    @property
    def model_price(self) -> Price | None:
        return self.provider_settings.prices.get(self.model)


@contextmanager
def open_model_run(
    config: DistillConfig, provider: str, model: str, journal: Journal, progress: Progress
) -> Iterator[ModelRun]:
    """A run with the provider's endpoint, whose local server runs meanwhile. Raises ProviderUnusable (69)."""
    # One budget for all stages: the spending of the other journals counts.
    tally = BudgetTracker(config.budget, journal.usage_of_all_journals())
    with open_endpoint(provider, config.providers[provider], model) as endpoint:
        yield ModelRun(endpoint, config, model, journal, tally, progress)
