"""Typed settings. The YAML files in `configs/` are the only home of values and defaults.

Every key must stand in the YAML: a missing key and an unknown key are errors that name the file,
the key and the nearest known name. `extends: FILE` at the top of a YAML file takes every value
from FILE (relative to the file that says it) and overrides only what stands below.
Flags win over YAML. Paths are relative to the current directory.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from nexa_distill import pii
from nexa_distill.errors import InputError, InputMissing, did_you_mean

PiiAction = Literal["flag", "redact", "reject"]
AnswerKind = Literal["sql", "python", "json", "fenced"]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A block of settings: no unknown key, no silent conversion, no change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class Storage(Section):
    """Where things are. Every path but `logs` is relative to `root`."""

    root: str
    logs: str
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
    annotations: str
    rejected_labels: str
    sft_parquet: str
    sft_jsonl: str
    splits: str
    students: str
    models: str
    student_outputs: str
    baseline_outputs: str
    evaluation: str
    evaluation_report: str
    journal: str
    manifests: str
    reports: str

    def path(self, key: str) -> Path:
        """The path that `storage:` gives for `key`."""
        return Path(self.root) / str(getattr(self, key))

    def key_of(self, path: Path) -> str | None:
        """The `storage:` key whose path this is, or None for a file from elsewhere."""
        wanted = path.resolve()
        for key in type(self).model_fields:
            if key not in ("root", "logs") and self.path(key).resolve() == wanted:
                return key
        return None


class Columns(Section):
    """`defaults:` names of the columns in raw input, and the task types made from a text.

    Of prompts that exist already: `task_type` is that of a row which names none, `prompt_template`
    what stands around each (`{prompt}` and other columns, such as `{schema}`).
    """

    prompt_column: str
    context_column: str
    task_type_column: str
    text_column: str
    reference_column: str
    task_type: str
    prompt_template: str
    tasks: list[str] = Field(min_length=1)
    prompts: str


class RawInput(Section):
    """Where the raw data is, and how much of it to take."""

    path: str
    limit: Count | None


class Chunking(Section):
    """In whitespace-separated words, the tokenizer-free estimate of a token."""

    max_tokens: Count
    overlap_tokens: int = Field(ge=0)


class Split(Section):
    """Shares of the duplicate clusters; what is left is train."""

    val: float = Field(ge=0, lt=1)
    test: float = Field(ge=0, lt=1)
    seed: int


class Dedup(Section):
    """What counts as a near-duplicate and as contamination.

    `jaccard`: share of common word n-grams from which on two texts are near-duplicates; null = only
    equal rows are. `shingle_words`: length of these n-grams. `permutations`: MinHash values of a
    text. `contamination_words`: length of a run of words that training must not share with held-out
    rows and `eval_files`; null = not looked for. `contamination_common`: a run that occurs more
    often than this in all texts is boilerplate and does not count.
    """

    jaccard: float | None = Field(gt=0, le=1)
    shingle_words: Count
    permutations: int = Field(ge=16, le=1024)
    contamination_words: int | None = Field(ge=5, le=100)
    contamination_common: Count
    eval_files: list[str]


class Price(Section):
    """US dollars per million tokens."""

    prompt: NonNegative
    completion: NonNegative

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars of one answer."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6

    def share(self, discount: float) -> "Price":
        """What is left of it: 0.5 is half the price."""
        return Price(prompt=self.prompt * discount, completion=self.completion * discount)


class Provider(Section):
    """One OpenAI-compatible API. `prices` by model; a model without one is unpriced.

    `extra_body` is laid over each request, `regen_extra_body` over that for regeneration; a null
    in them takes the key out. Requests and tokens per minute are what the account allows (null =
    not known; the pace adapts in any case). `start` is the command of a server that runs on this
    machine: it gets `--endpoint-file FILE` and writes its address there (see model_server.py). Both
    are null for an API that somebody else runs. `batch_discount` is the share of the price that an
    answer by the Batch API costs; null = there is no Batch API.
    """

    base_url: str | None
    model: str
    regen_model: str
    api_key_env: str | None
    requests_per_minute: float | None = Field(gt=0)
    tokens_per_minute: float | None = Field(gt=0)
    prices: dict[str, Price]
    batch_discount: float | None = Field(gt=0, le=1)
    start: list[str] | None
    endpoint_file: str | None
    start_timeout_seconds: NonNegative
    extra_body: dict[str, Any]
    regen_extra_body: dict[str, Any]


class Collection(Section):
    """How the teacher is asked. `response_schemas`: task type -> path of a JSON schema file."""

    teacher_model: str | None
    batch_size: Count
    batch_api: bool
    batch_requests: int = Field(ge=1, le=50_000)
    system_prompt_path: str
    regen_teacher_model: str | None
    regen_system_prompt_path: str
    concurrency: Count
    max_tokens: Count
    temperature: float = Field(ge=0, le=2)
    timeout_seconds: float = Field(gt=0)
    max_attempts: Count
    max_samples: Count | None
    samples: Count
    on_uncertain: Literal["resend", "hold"]
    stop_on_model_change: bool
    response_schemas: dict[str, str]


class ExistingAnswers(Section):
    """`answers:` a file of answers in place of a teacher; `path` null = the provider is asked.

    `column` holds the answers, `model_id` says who gave them.
    """

    path: str | None
    column: str
    model_id: str


class JudgeModel(Section):
    """One judge. `extra_body` is laid over its requests; a null in it takes the key out."""

    provider: str
    model: str
    extra_body: dict[str, Any]


class Rubrics(Section):
    """Text files; the first line of each names the rubric and its version."""

    factuality: str
    reasoning: str


class Judging(Section):
    """Who judges the answers, and by what. No judges: it is not run.

    `canary_prompts`: prompts to which each judge is also shown answers that must not pass.
    """

    judges: list[JudgeModel]
    rubrics: Rubrics
    max_tokens: Count
    temperature: float = Field(ge=0, le=2)
    canary_prompts: Count

    @field_validator("judges")
    @classmethod
    def _each_once(cls, value: list[JudgeModel]) -> list[JudgeModel]:
        models = [judge.model for judge in value]
        twice = sorted({model for model in models if models.count(model) > 1})
        if twice:
            text = f"{', '.join(twice)} judges twice; its answer would only be read twice"
            raise PydanticCustomError("judges", "{text}", {"text": text})
        return value


class Execution(Section):
    """What the exec gate runs: `tasks` by task type (null takes one out). Limits are per answer.

    `databases`: folder of the SQLite files that rows name; `workers` null = one per core. A SQL
    answer has `timeout_seconds` and, per query, `max_sql_steps` of SQLite's virtual machine.
    """

    tasks: dict[str, Literal["sql", "python", "math", "json"] | None]
    databases: str | None
    workers: Count | None
    timeout_seconds: float = Field(gt=0)
    memory_mb: int = Field(ge=128)
    max_sql_steps: int = Field(ge=1000)
    max_rows: Count
    max_output_bytes: int = Field(ge=1000)


class Budget(Section):
    """Of all paid stages and all runs together; stops before it is exceeded. null = no limit.

    `target_samples`: kept samples that the cost report projects to.
    """

    max_usd: NonNegative | None
    max_requests: Count | None
    max_tokens: Count | None
    target_samples: Count


class DistillConfig(Section):
    """`configs/distill_config.yaml`. `cleaners`: task type -> kind of answer (`cleaning.py`)."""

    storage: Storage
    input: RawInput
    defaults: Columns
    chunking: Chunking
    split: Split
    dedup: Dedup
    provider: str
    providers: dict[str, Provider] = Field(min_length=1)
    collection: Collection
    answers: ExistingAnswers
    cleaners: dict[str, AnswerKind]
    judging: Judging
    execution: Execution
    budget: Budget
    filters: str
    student: str

    def chosen_provider(self, name: str | None = None) -> tuple[str, Provider]:
        """The provider of `name`, or of the `provider:` key. Raises InputError if unknown."""
        name = name or self.provider
        if name not in self.providers:
            known = ", ".join(self.providers)
            raise InputError(
                f'provider "{name}" is not in providers:{did_you_mean(name, self.providers)}; '
                f"known: {known}"
            )
        return name, self.providers[name]


def _share(value: float) -> float:
    if value <= 1:
        return value
    instead = f"write {value / 100:.2f}" if value <= 100 else "write a number up to 1.0"
    raise PydanticCustomError("share", "scores are 0..1, {instead}", {"instead": instead})


def _pattern(pattern: str) -> str:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pattern:
        raise PydanticCustomError("pattern", "an empty pattern matches every answer; remove it")
    escapes = r"\\[pP]\{[^}]*\}|\\.|\(\?P"
    if re.search("[A-Z]", re.sub(escapes, "", pattern)):
        lower = "answers are lower-cased before matching; write the pattern in lower case"
        raise PydanticCustomError("pattern", "{text}", {"text": lower})
    try:
        pc.match_substring_regex(pa.array([""]), pattern)
    except pa.ArrowInvalid as error:
        text = f"RE2 cannot compile this pattern ({error}); no look-around, no back-references"
        raise PydanticCustomError("pattern", "{text}", {"text": text}) from None
    return pattern


def _rejectable(flag: str) -> str:
    from nexa_distill.contracts import FLAG_REASONS

    if flag not in FLAG_REASONS:
        known = ", ".join(FLAG_REASONS)
        text = f"no answer_flag that this rule rejects{did_you_mean(flag, FLAG_REASONS)}; {known}"
        raise PydanticCustomError("flag", "{text}", {"text": text})
    return flag


Share = Annotated[float, Field(ge=0), AfterValidator(_share)]
Pattern = Annotated[str, AfterValidator(_pattern)]


class Pii(Section):
    """`pii:` what becomes of personal data and secrets in an answer (`pii.py`).

    `flag` counts it, `redact` writes `[email]` in its place, `reject` rejects the answer; null does
    not look for it.
    """

    email: PiiAction | None
    phone: PiiAction | None
    card: PiiAction | None
    secret: PiiAction | None

    def of(self, *actions: PiiAction) -> list[pii.Kind]:
        """The kinds with one of these actions; without any given, all that are looked for."""
        wanted = actions or get_args(PiiAction)
        return [kind for kind in get_args(pii.Kind) if getattr(self, kind) in wanted]


class GateConfig(Section):
    """`sample_gate:` what an answer needs to be kept.

    `required`: families (`rules`) or names (`judge.factuality`) of checks that must have been made.
    Checks that are not required still reject where they were made and did not pass.
    """

    required: list[str]
    judge_f_threshold: Share
    judge_r_threshold: Share
    require_both: bool


class QualityGates(Section):
    """`quality_gates:` of a whole run: what SampleGate's report must reach; null = not asked.

    `min_total` counts the answers that were judged; the rates are shares of them that were kept,
    execute and match the known answer; `min_judge_mean` is the mean of all judges' scores.
    """

    min_total: Count | None
    min_keep_rate: Share | None
    min_exec_pass_rate: Share | None
    min_gold_match_rate: Share | None
    min_judge_mean: Share | None


class FilterConfig(Section):
    """`configs/filters.yaml`: every threshold of the rules and of SampleGate.

    null, false and an empty list turn a rule off. Lengths are of one answer.
    """

    reject_flags: list[Annotated[str, AfterValidator(_rejectable)]]
    require_stop: bool
    min_char_length: Count | None
    max_char_length: Count | None
    min_token_length: Count | None
    max_token_length: Count | None
    require_action_verb: bool
    allowed_action_verbs: list[Annotated[str, Field(pattern="^[a-z]+$")]]
    ban_citations: bool
    citation_patterns: list[Pattern]
    forbidden_patterns: list[Pattern]
    ban_unbalanced_code_fences: bool
    template_patterns: list[Pattern]
    ban_refusals: bool
    refusal_patterns: list[Pattern]
    max_repetition: Share | None
    require_json_for: list[str]
    safety_patterns: dict[Annotated[str, Field(pattern="^[a-z0-9_]+$")], Pattern]
    pii: Pii
    sample_gate: GateConfig
    quality_gates: QualityGates

    @field_validator("max_char_length", "max_token_length")
    @classmethod
    def _above_minimum(cls, value: int | None, info: ValidationInfo) -> int | None:
        lower = str(info.field_name).replace("max", "min")
        least = info.data.get(lower)
        if value is not None and least is not None and value < least:
            text = f"below {lower} ({least}), so no answer could pass"
            raise PydanticCustomError("range", "{text}", {"text": text})
        return value

    @field_validator("allowed_action_verbs")
    @classmethod
    def _some_verbs(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("require_action_verb") and not value:
            raise PydanticCustomError("verbs", "require_action_verb is true and no verb is allowed")
        return value


class Training(Section):
    """`train:` of a student run. A step is one optimizer step."""

    epochs: Count
    batch_size: Count
    gradient_accumulation: Count
    learning_rate: float = Field(gt=0)
    warmup_ratio: float = Field(ge=0, le=1)
    weight_decay: NonNegative
    max_grad_norm: float = Field(gt=0)
    max_length: Count
    seed: int
    save_every_steps: Count
    eval_every_steps: Count


class Generation(Section):
    """`generate:` how a student answers held-out prompts. `max_prompts` null = all of the split."""

    split: Literal["val", "test"]
    max_new_tokens: Count
    temperature: float = Field(ge=0, le=2)
    batch_size: Count
    max_prompts: Count | None


class StudentConfig(Section):
    """`configs/baseline_distill.yaml`: one student run.

    It says nothing about where the data is: commands of `nexa_train` take that from the pipeline's
    own file, `--pipeline-config configs/distill_config.yaml` (`storage:`). The finished checkpoint
    stands at `<storage.students>/<run_name>/final` and is sealed there (`manifests.StageRun`).
    `keep_layers`: indices of the decoder layers that the student keeps; null = all.
    """

    run_name: str
    student: str
    keep_layers: list[int] | None
    train: Training
    generate: Generation

    def training_settings(self) -> dict[str, Any]:
        """What decides the checkpoint."""
        return self.model_dump(include={"student", "keep_layers", "train"})

    def generation_settings(self, config: "DistillConfig") -> dict[str, Any]:
        """What decides the held-out answers, next to the prompts and the checkpoint."""
        from nexa_distill.cleaning import cleaner_of

        system = load_system_prompt(config.collection.system_prompt_path)
        own = self.model_dump(include={"student", "keep_layers", "generate"})
        return {**own, "system_prompt": system, **cleaner_of(config).settings}

    def tokenizer(self, storage: Storage) -> Path | None:
        """The `tokenizer.json` of `student`, if it is on this disk already.

        The bundled model is the one that is made in `storage.models`.
        """
        bundled = self.student == "bundled"
        files = storage.path("models").glob("*/tokenizer.json") if bundled else ()
        found = [*files, Path(self.student) / "tokenizer.json"]
        there = (file for file in found if file.is_file() and not file.parent.name.startswith("."))
        return next(there, None)

    def checkpoint(self, storage: Storage) -> Path:
        """Where the finished checkpoint is."""
        return storage.path("students") / self.run_name / "final"


S = TypeVar("S", bound=Section)


def with_flags(config: DistillConfig, flags: Mapping[str, Any]) -> DistillConfig:
    """`config` with command-line flags laid over it; a flag that was not given (None) says nothing.

    `flags` is nested as the YAML is: `{"input": {"limit": 60}}`.
    """
    values = _merge(config.model_dump(), _given(flags))
    return _validated("command line", values, DistillConfig)


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    pairs = ((k, _given(v) if isinstance(v, Mapping) else v) for k, v in flags.items())
    return {k: v for k, v in pairs if v is not None}


def load_config(path: Path) -> DistillConfig:
    """The pipeline's settings. Raises InputMissing or InputError."""
    return load_yaml(path, DistillConfig)


def load_system_prompt(path: str) -> str:
    """The text of a system prompt file. Raises InputError when there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the system prompt ({error})") from None
    if not text:
        raise InputError(f"{path}: the system prompt is empty")
    return text


def load_yaml(path: Path, model: type[S], overrides: Mapping[str, Any] | None = None) -> S:
    """Read and validate one YAML file; `overrides` are flags, laid over it.

    Raises InputMissing when there is no file, InputError (65) for YAML that does not parse and for
    an unknown, missing or out-of-range key.
    """
    return _validated(str(path), _merge(read_yaml(path), overrides or {}), model)


def _validated(source: str, values: dict[str, Any], model: type[S]) -> S:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_explain(source, model, error))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The YAML's mapping with `extends:` resolved."""
    if not path.is_file():
        raise InputMissing(
            f"{path}: no such configuration file (looked in {Path.cwd()}); "
            "run from the project folder or pass --config FILE"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    base = values.pop("extends", None)
    return _merge(read_yaml(path.parent / base), values) if base else values


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merge(below, value) if both and isinstance(below, Mapping) else value
    return merged


def _explain(source: str, model: type[Section], error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        match item["type"]:
            case "extra_forbidden":
                known = _known_keys(model, item["loc"][:-1])
                hint = did_you_mean(str(item["loc"][-1]), known)
                yield f"{source}: unknown key {where}{hint}; known here: {', '.join(known)}"
            case "missing":
                yield f"{source}: missing key {where}; copy it from the file that ships in configs/"
            case _:
                yield f"{source}: {where} is {item['input']!r}: {item['msg']}"


def _known_keys(model: type[Section], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at `location`; a step into a dict or list changes no model."""
    for step in location:
        field = model.model_fields.get(str(step))
        if field is None:
            continue
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Section):
                model = kind
    return list(model.model_fields)
