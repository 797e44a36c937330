"""`configs/distill_config.yaml`, typed. Only the YAML files contain values and defaults.

Flags override YAML. Paths are relative to the current directory. Loading and validation:
`yaml_loading.py`; the other two files: `filters.py`, `student.py`.
"""

import argparse
import os
from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from nexa_distill.contracts import RUBRICS
from nexa_distill.dialects import DIALECTS, Dialect, SystemRole, dialect_of_host
from nexa_distill.errors import InputError, UsageError, did_you_mean
from nexa_distill.settings.yaml_loading import (
    Count,
    NonNegative,
    Section,
    load_yaml,
    merge_settings,
    refuse_value,
    validate_section,
)
from nexa_distill.text.secrets import is_variable_name

Reasoning = Literal["drop", "keep"]
AnswerKind = Literal["sql", "python", "json", "fenced"]


class Storage(Section):
    """Paths of all files. A path that does not begin with `root` is below it, except `logs`."""

    # What costs money or minutes and is the same for every run.
    SHARED: ClassVar[frozenset[str]] = frozenset({"journal", "models", "hub_datasets"})

    root: str
    logs: str
    shared_root: str | None = None  # of SHARED; null = `root`
    hub_datasets: str
    canonical: str
    raw_dataset: str
    rejected_inputs: str
    clusters: str
    collected_dataset: str
    unanswered: str
    rule_filtered: str
    filtered_dataset: str
    rejections: str
    regen_dataset: str
    rules_checks: str
    exec_checks: str
    judge_checks: str
    judge_canaries: str
    person_checks: str
    annotations: str
    preferences: str
    rejected_labels: str
    sft_parquet: str
    sft_jsonl: str
    splits: str
    teacher_logits: str
    students: str
    models: str
    student_outputs: str
    baseline_outputs: str
    evaluation: str
    evaluation_report: str
    journal: str
    manifests: str
    reports: str

    @classmethod
    def file_keys(cls) -> list[str]:
        """The keys of files and folders that stages write."""
        return [key for key in cls.model_fields if key not in ("root", "logs", "shared_root")]

    def path_of(self, key: str) -> Path:
        shared = self.shared_root if key in self.SHARED else None
        root, path = Path(shared or self.root), Path(str(getattr(self, key)))
        return path if path.is_relative_to(root) else root / path

    def key_of(self, path: Path) -> str | None:
        return next((key for key in self.file_keys() if self.path_of(key).resolve() == path.resolve()), None)

    def path_beside(self, dst: Path | None, ending: str, usual: Path) -> Path:
        """The path of a secondary result: `usual`, or beside a `dst` outside this storage."""
        # A command whose main result is written elsewhere changes no table of the pipeline.
        if dst is None or self.key_of(dst):
            return usual
        return dst.with_name(f"{dst.stem}.{ending}")

    @model_validator(mode="after")
    def _name_each_file_once(self) -> "Storage":
        by_path: dict[Path, str] = {}
        for key in self.file_keys():
            path = self.path_of(key)
            # By name alone: the files may not exist yet, so links cannot be followed.
            first = by_path.setdefault(Path(os.path.normpath(path)), key)
            if first != key:
                names = " and ".join(sorted((first, key)))
                refuse_value(
                    f"{names} are one file, {path}, and two stages write it; give one "
                    f"of them another name, as configs/{DistillConfig.shipped} does"
                )
        return self


class Columns(Section):
    """`defaults:` names of the columns in raw input, and the task types made from a text."""

    prompt_column: str | None  # null = prompts are made from texts
    context_column: str
    task_type_column: str
    text_column: str
    reference_column: str
    id_columns: list[str]  # the first that is not empty identifies a row
    task_type: str  # of a row that contains a prompt and no type; may be a task's name, file or folder
    prompt_template: str  # around each existing prompt: `{prompt}` and other columns, such as `{schema}`
    # Of the prompts that are made from a text: names of tasks (`settings/tasks.py`), files or folders.
    tasks: list[str] = Field(min_length=1)
    prompts: str | None  # folder with a TASK.txt for some of them; null = the tasks' own prompts


class RawInput(Section):
    """Path of the raw data, and how much to read."""

    path: str
    delimiter: str | None = Field(min_length=1, max_length=1)  # of CSV; null = detected
    limit: Count | None  # first rows; null = all


class Chunking(Section):
    """In whitespace-separated words, the tokenizer-free estimate of a token."""

    max_tokens: Count
    overlap_tokens: int = Field(ge=0)


class Split(Section):
    """Shares of the duplicate clusters, the rest is train; or a raw column with the split of each row."""

    # With the values train, val and test; raw data without it is split by the shares.
    column: str | None = None
    val: float = Field(ge=0, lt=1)
    test: float = Field(ge=0, lt=1)
    seed: int


class Dedup(Section):
    """Definitions of near-duplicates and contamination."""

    jaccard: float | None = Field(gt=0, le=1)  # share of common word n-grams of near-duplicates; null = only equal rows
    shingle_words: Count  # length of these n-grams
    permutations: int = Field(ge=16, le=1024)  # MinHash values per text
    # Words in a row that training must not share with held-out rows and `eval_files`; null = no search.
    contamination_words: int | None = Field(ge=5, le=100)
    contamination_common: Count  # a run that occurs more often in all texts is boilerplate, and is ignored
    eval_files: list[str]


class Price(Section):
    """US dollars per million tokens."""

    prompt: NonNegative
    completion: NonNegative

    def answer_cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6

    def with_discount(self, discount: float) -> "Price":
        """The price multiplied by `discount`: 0.5 is half the price."""
        return Price(prompt=self.prompt * discount, completion=self.completion * discount)


def _as_text(value: object) -> object:
    """Text of a value that YAML reads as a date (`api-version: 2024-10-21`) or a number (`7`)."""
    if isinstance(value, date):
        return value.isoformat()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


PlainText = Annotated[str, BeforeValidator(_as_text)]


@cache  # called for every request
def _dialect_at(base_url: str) -> Dialect:
    return dialect_of_host((urlsplit(base_url).hostname or "").lower())


OWN = "own"  # the provider that --base-url makes
# Options that name a teacher: it is asked, although the raw data has answers.
TEACHER_OPTIONS = ("provider", "base_url", "server_url", "server_model")


class Provider(Section):
    """One OpenAI-compatible API: its address, its model, and what differs from the defaults here."""

    base_url: str | None = None
    model: str
    model_env: str | None = None  # environment variable that, where it is set, has the model; null once it is read
    regen_model: str  # default: `model`
    api_key_env: str | None = None
    # Limits of the account; null = not known. The rate adapts in any case.
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    prices: dict[str, Price] = Field(default_factory=dict)  # by model; a model without a price is unpriced
    batch_discount: float | None = Field(None, gt=0, le=1)  # share of the price that its Batch API costs; null = none
    # Command of a server on this machine, which gets `--endpoint-file FILE` and writes its address there
    # (models/server.py); both are null for a remote API.
    start: list[str] | None = None
    endpoint_file: str | None = None
    start_timeout_seconds: NonNegative = 180.0
    # Keys that override those of each request, and of regeneration; a null removes the key.
    extra_body: dict[str, Any] = Field(default_factory=dict)
    regen_extra_body: dict[str, Any] = Field(default_factory=dict)
    dialect: str | None = None  # one of `dialects/`; null = by host name
    system_role: SystemRole | None = None  # null = as in the dialect
    stream: bool | None = None  # null = as in the dialect
    # Added to each request.
    query: dict[str, PlainText] = Field(default_factory=dict)
    headers: dict[str, PlainText] = Field(default_factory=dict)
    proxy: str | None = None  # null = from http_proxy, https_proxy and no_proxy, except on this machine; "" = none
    startup_wait_seconds: NonNegative = 300.0  # for a server that is loading its model; 0 = it fails like any other

    @model_validator(mode="before")
    @classmethod
    def _resolve_models(cls, values: Any) -> Any:
        variable = values.get("model_env") if isinstance(values, dict) else None
        if isinstance(variable, str):
            # Read once, so that flags override it and the frozen settings of a launch keep its model.
            model = os.environ.get(variable)
            values = {**values, "model_env": None, **({"model": model} if model else {})}
        named = isinstance(values, dict) and "model" in values
        return {"regen_model": values["model"], **values} if named else values

    @field_validator("dialect")
    @classmethod
    def _known_dialect(cls, value: str | None) -> str | None:
        if value is not None and value not in DIALECTS:
            refuse_value(f"no such dialect{did_you_mean(value, DIALECTS)}; known: {', '.join(DIALECTS)}")
        return value

    @property
    def active_dialect(self) -> Dialect:
        return DIALECTS[self.dialect] if self.dialect else _dialect_at(self.base_url or "")

    @property
    def dialect_changes(self) -> dict[str, Any]:
        """The settings of the dialect that differ from OpenAI's and change a request's body."""
        dialect, plain = self.active_dialect, DIALECTS["openai"]
        settings = {
            "system_role": self.system_role or dialect.system_role,
            "stream": dialect.stream if self.stream is None else self.stream,
            "limit_key": dialect.limit_key,
            "sends_temperature": dialect.sends_temperature,
            "body": dict(dialect.body),
        }
        return {name: value for name, value in settings.items() if value != getattr(plain, name)}

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not is_variable_name(value):
            refuse_value(
                "expected the name of an environment variable, such as OPENAI_API_KEY; "
                "write the key itself into .env (see .env.example), under that name"
            )
        return value


class Collection(Section):
    """Requests to the teacher."""

    teacher_model: str | None
    batch_size: Count
    batch_api: bool
    batch_requests: int = Field(ge=1, le=50_000)
    system_prompt_path: str | None  # null = that of the task
    regen_teacher_model: str | None
    regen_system_prompt_path: str | None  # null = that of the task
    concurrency: Count
    max_tokens: Count
    temperature: float = Field(ge=0, le=2)
    timeout_seconds: float = Field(gt=0)
    max_attempts: Count
    max_samples: Count | None  # first rows; null = all
    samples: Count  # answers per prompt
    on_uncertain: Literal["resend", "hold"]  # for requests that may have been billed
    stop_on_model_change: bool
    response_schemas: dict[str, str]  # task type -> path of a JSON schema file


class Regeneration(Section):
    """`regeneration:` how rejected answers are requested again."""

    rounds: int = Field(ge=0, le=20)  # per sample; 0 = only where an annotator chose `regenerate`
    # Of round 1, 2, ..., the last one for all later rounds; empty = `collection.regen_teacher_model`.
    models: list[str]
    answer_chars: int = Field(ge=0)  # of the rejected answer, as the model is shown it
    # Limit of a repair if reasoning used up the first limit, and at least twice that; null = no such repair.
    reasoning_max_tokens: Count | None = 4096


class ExistingAnswers(Section):
    """`answers:` existing answers in place of a teacher."""

    path: str | None  # null = those of the raw data, or requested from the provider
    from_input: bool  # raw data with prompts and answers contains both; false = its answers are the reference
    column: str | None  # of the answers; null = the one that looks like answers
    model_id: str  # recorded as their source


class JudgeModel(Section):
    """One judge. `extra_body` overrides keys of its requests; a null in it removes the key."""

    provider: str
    model: str
    extra_body: dict[str, Any]


def _check_rubrics(files: dict[str, str]) -> dict[str, str]:
    names = [rubric.name for rubric in RUBRICS]
    if sorted(files) != sorted(names):
        raise ValueError(f"expected one file for each of {', '.join(names)}, found {', '.join(files) or 'none'}")
    return files


class Packaging(Section):
    """`reasoning: keep` puts the teacher's reasoning into the target, before the answer."""

    reasoning: Reasoning


class Judging(Section):
    """The judges and their rubrics. Without judges, nothing is judged."""

    judges: list[JudgeModel]
    rubrics: Annotated[dict[str, str], AfterValidator(_check_rubrics)]
    max_tokens: Count
    temperature: float = Field(ge=0, le=2)
    canary_prompts: Count  # prompts with which each judge is also shown answers that must not pass

    @field_validator("judges")
    @classmethod
    def _each_once(cls, value: list[JudgeModel]) -> list[JudgeModel]:
        models = [judge.model for judge in value]
        twice = sorted({model for model in models if models.count(model) > 1})
        if twice:
            refuse_value(f"{', '.join(twice)} judges twice; it would count as two judges")
        return value


class Execution(Section):
    """Settings of the exec gate. Limits are per answer."""

    tasks: dict[str, Literal["sql", "python", "math", "json"] | None]  # by task type; null removes one
    databases: str | None  # folder of the SQLite files that rows name
    workers: Count | None  # null = one per core
    timeout_seconds: float = Field(gt=0)
    memory_mb: int = Field(ge=128)
    max_sql_steps: int = Field(ge=1000)  # of SQLite's virtual machine, per query
    max_rows: Count
    max_output_bytes: int = Field(ge=1000)


class Budget(Section):
    """Limits of all paid stages and runs together, never exceeded. null = no limit."""

    max_usd: NonNegative | None
    max_requests: Count | None
    max_tokens: Count | None
    target_samples: Count  # kept samples for which the cost report projects the cost
    machine_usd_per_hour: NonNegative | None = None  # of training and evaluation, for `pipeline plan --target`


class DistillConfig(Section):
    """`configs/distill_config.yaml`. `cleaners`: task type -> kind of answer (`extraction.py`)."""

    shipped: ClassVar[str | None] = "distill_config.yaml"
    storage: Storage
    input: RawInput
    defaults: Columns
    chunking: Chunking
    split: Split
    dedup: Dedup
    provider: str
    providers: dict[str, Provider] = Field(min_length=1)
    collection: Collection
    regeneration: Regeneration
    answers: ExistingAnswers
    cleaners: dict[str, AnswerKind]
    judging: Judging
    execution: Execution
    packaging: Packaging
    budget: Budget
    filters: str
    student: str

    @property
    def has_answers_in_input(self) -> bool:
        """Whether `answers.path` is the raw data itself: answers then belong to the prompt of their row."""
        path = self.answers.path
        return path is not None and Path(path).resolve() == Path(self.input.path).resolve()

    def chosen_provider(self, name: str | None = None) -> tuple[str, Provider]:
        """The provider of `name`, or of the `provider:` key. Raises InputError if unknown."""
        name = name or self.provider
        if name not in self.providers:
            names = ", ".join(self.providers)
            raise InputError(
                f'provider "{name}" is not in providers:{did_you_mean(name, self.providers)}; known: {names}'
            )
        return name, self.providers[name]

    def refuse_models_not_served(self) -> None:
        """Raises InputError if a configured model is not on the server that we start."""
        name, provider = self.chosen_provider()
        if not provider.start or self.answers.path:
            return  # answers of a file need no server
        models = [
            ("collection.teacher_model", self.collection.teacher_model),
            ("collection.regen_teacher_model", self.collection.regen_teacher_model),
            *(("regeneration.models", model) for model in self.regeneration.models),
        ]
        for key, model in models:
            if model not in (None, provider.model, provider.regen_model):
                first = self._remote_provider_of(model)
                raise InputError(
                    f'{key} is {model!r}, and the server of provider "{name}" on this machine has '
                    f"{provider.model}: choose the provider that has it, `provider: {first}` (or "
                    f"--provider {first}), or leave {key} out"
                )

    def _remote_provider_of(self, model: str | None) -> str:
        for name, provider in self.providers.items():
            models = {provider.model, provider.regen_model, *provider.prices}
            if model in models and not provider.start:
                return name
        return "NAME"


def with_flags(config: DistillConfig, flags: Mapping[str, Any]) -> DistillConfig:
    """`config` overridden by command-line flags, nested as the YAML is; None = not set.

    Example: `{"input": {"limit": 60}}`.
    """
    # Validated again as a whole, because a flag may contradict a setting.
    flags = _drop_unset(flags)
    values = merge_settings(config.model_dump(), flags)
    if _leaves_answers_behind(config, flags):
        values["answers"]["path"] = None
    return validate_section("command line", values, DistillConfig)


def _leaves_answers_behind(config: DistillConfig, flags: Mapping[str, Any]) -> bool:
    """Whether another input replaces a file that holds both the prompts and the answers."""
    holds_both = config.answers.path is not None and config.answers.path == config.input.path
    raw = flags.get("input", {}).get("path", config.input.path)
    is_other = Path(raw).resolve() != Path(config.input.path).resolve()
    return holds_both and is_other and "path" not in flags.get("answers", {})


def _drop_unset(flags: Mapping[str, Any]) -> dict[str, Any]:
    pairs = ((k, _drop_unset(v) if isinstance(v, Mapping) else v) for k, v in flags.items())
    return {k: v for k, v in pairs if v is not None}


def load_config(path: Path) -> DistillConfig:
    """Load the pipeline's settings. Raises InputMissing or InputError."""
    return load_yaml(path, DistillConfig)


def load_with_options(options: argparse.Namespace) -> DistillConfig:
    """The settings of `--config`, overridden by each option whose `dest` is a key, such as `input.limit`."""
    flags: dict[str, Any] = {}
    for name, value in vars(options).items():
        section, dot, key = name.partition(".")
        if dot:
            flags.setdefault(section, {})[key] = value
        elif name in DistillConfig.model_fields:
            flags[name] = value
    flags.setdefault("defaults", {}).update(task_flags(getattr(options, "task", None)))
    config = with_flags(load_config(options.config), flags)
    if any(getattr(options, name, None) for name in TEACHER_OPTIONS) and not vars(options).get("answers.path"):
        config = without_answers_in_input(config)
    return with_server(config, getattr(options, "server_url", None), getattr(options, "server_model", None))


def without_answers_in_input(config: DistillConfig) -> DistillConfig:
    """`config` when a teacher is named by a flag: it is asked, although the raw data has answers."""
    path = None if config.has_answers_in_input else config.answers.path
    answers = config.answers.model_copy(update={"from_input": False, "path": path})
    return config.model_copy(update={"answers": answers})


def task_flags(tasks: str | None) -> dict[str, Any]:
    """The keys of `defaults:` for `--task LIST`, names or paths with commas between them; None = as configured."""
    if tasks is None:
        return {}
    # Of prompts that exist too, which have one task: a list is refused when they are read.
    return {"tasks": [name for entry in tasks.split(",") if (name := entry.strip())], "task_type": tasks.strip()}


def with_server(config: DistillConfig, base_url: str | None, model: str | None) -> DistillConfig:
    """`config` with the server and the model of `--base-url` and `--model`; None = as configured.

    In place of a provider whose server we start, a server is the provider OWN, which has no other
    settings. Raises UsageError if that has no model.
    """
    if base_url is None and model is None:
        return config
    name, provider = config.chosen_provider()
    if base_url and provider.start:
        if model is None:
            raise UsageError("--base-url needs --model NAME, the model to ask there (or --provider, one with a model)")
        name = OWN
    # Where they are set, they come before the provider's model.
    named = [key for key in ("teacher_model", "regen_teacher_model") if getattr(config.collection, key)]
    flags: dict[str, Any] = {
        "provider": name,
        "providers": {name: {"base_url": base_url, "model": model, "regen_model": model}},
        "collection": dict.fromkeys(named, model),
    }
    return with_flags(config, flags)


def with_address(
    config: DistillConfig, name: str, base_url: str | None, api_key_env: str | None = None
) -> DistillConfig:
    """`config` with another address or key for the provider `name`; None = as configured."""
    provider: dict[str, Any] = {"base_url": base_url, "api_key_env": api_key_env}
    if base_url:  # another server: start none here
        provider |= {"start": [], "endpoint_file": ""}
    return with_flags(config, {"providers": {name: provider}})


def load_system_prompt(path: str) -> str:
    """The text of a system prompt file. Raises InputError if it is missing or empty."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the system prompt ({error})") from None
    if not text:
        raise InputError(f"{path}: the system prompt is empty")
    return text
