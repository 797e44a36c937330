"""Build the judges' collectors from the configuration and the command line."""

import argparse
from collections.abc import Callable, Iterator, Sequence

from nexa_distill.collection.collector import Collector
from nexa_distill.collection.first_answers import AnswerRequirement
from nexa_distill.collection.requests.body import PromptRequest
from nexa_distill.contracts import Row
from nexa_distill.judging.aggregation import Panel
from nexa_distill.judging.candidates import Candidates, has_text
from nexa_distill.judging.rubrics import judge_request, load_rubrics
from nexa_distill.judging.verdict_parser import UNREADABLE, is_json_object
from nexa_distill.settings.pipeline import DistillConfig, JudgeModel, with_address, with_flags


def judge_config(config: DistillConfig) -> DistillConfig:
    """The configuration with the judges' `max_tokens` and `temperature`, without batches."""
    judging = config.judging
    own = {"max_tokens": judging.max_tokens, "temperature": judging.temperature}
    # Several judges share one journal, and an open batch belongs to one provider.
    return with_flags(config, {"collection": own | {"batch_api": False}})


def build_panel(config: DistillConfig, candidates: Candidates, *, retry_failed: bool = False) -> Panel:
    """The collectors of the configured judges for the `candidates`. Raises InputError."""
    rubrics, asking = load_rubrics(config), judge_config(config)

    def requests_by(judge: JudgeModel) -> Callable[[Row], list[PromptRequest]]:
        def requests_of(row: Row) -> list[PromptRequest]:
            shown = rubrics if has_text(row) else []
            return [judge_request(row, rubric, judge, asking) for rubric in shown]

        return requests_of

    def read_rows(_: Sequence[str] | None) -> Iterator[list[Row]]:
        return candidates.answer_batches()

    total = (candidates.shown + len(candidates.canaries)) * len(rubrics)
    judges = [
        Collector(
            "judge",
            asking,
            config.chosen_provider(judge.provider)[0],
            judge.model,
            read_rows,
            requests_by(judge),
            total,
            retry_failed,
            usable=AnswerRequirement(is_json_object, UNREADABLE),
        )
        for judge in config.judging.judges
    ]
    return Panel(judges, rubrics)


def with_judge_options(config: DistillConfig, args: argparse.Namespace) -> DistillConfig:
    """`config` with the one judge that `--judge` and `--provider` name instead of the configured ones."""
    name, provider = config.chosen_provider(args.judge_provider)
    if args.judge or args.judge_provider:
        model = args.judge or provider.model
        extras = [j.extra_body for j in config.judging.judges if (j.provider, j.model) == (name, model)]
        judge = {"provider": name, "model": model, "extra_body": extras[0] if extras else {}}
        config = with_flags(config, {"judging": {"judges": [judge]}})
    return with_address(config, name, args.base_url)
