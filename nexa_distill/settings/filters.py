"""`configs/filters.yaml`, typed: every threshold of the rules, of SampleGate and of a whole run."""

import functools
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from nexa_distill.contracts import FLAG_REASONS, RUBRICS
from nexa_distill.errors import did_you_mean
from nexa_distill.settings.yaml_loading import Count, NonNegative, Section, Share, load_yaml, read_yaml, refuse_value
from nexa_distill.text import pii
from nexa_distill.text.folding import fold_pattern
from nexa_distill.text.language import ANY, LANGUAGES

PresetName = Literal["prose", "short", "code", "chat"]
PRESETS = Path(__file__).parents[1] / "filter_presets"  # one file each: what differs from filters.yaml
# Count it, replace it by `[email]` and the like, or reject the answer.
PiiAction = Literal["flag", "redact", "reject"]


@functools.cache  # the same file is read by many stages, and validated twice
def _why_not_re2(pattern: str) -> str:
    """Why RE2 cannot compile it, or ""."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        pc.match_substring_regex(pa.array([""]), fold_pattern(pattern))
    except pa.ArrowInvalid as error:
        return str(error)
    return ""


def _check_pattern(pattern: str) -> str:
    if not pattern:
        refuse_value("an empty pattern matches every answer; remove it")
    # Capitals have a meaning in escapes and named groups only.
    escapes = r"\\[pP](?:\{[^}]*\}|\w)|\\.|\(\?P"
    if re.search("[A-Z]", re.sub(escapes, "", pattern)):
        refuse_value("answers are lower-cased before matching; write the pattern in lower case")
    if why := _why_not_re2(pattern):
        refuse_value(f"RE2 cannot compile this pattern ({why}); no look-around, no back-references")
    return pattern


def _check_flag(flag: str) -> str:
    if flag not in FLAG_REASONS:
        flags = ", ".join(FLAG_REASONS)
        refuse_value(f"no answer_flag that this rule rejects{did_you_mean(flag, FLAG_REASONS)}; {flags}")
    return flag


def _by_language(value: Any) -> Any:
    """A plain list is English; YAML 1.1 reads the key `no` (Norwegian) as false."""
    if isinstance(value, list):
        return {"en": value}
    if isinstance(value, dict):
        return {"no" if key is False else key: listed for key, listed in value.items()}
    return value


def _check_language(code: str) -> str:
    if code != ANY and code not in LANGUAGES:
        refuse_value(
            f"no language that can be told apart{did_you_mean(code, sorted(LANGUAGES))}; write an "
            f"ISO 639-1 code (en, de, zh, ...) or {ANY}"
        )
    return code


Pattern = Annotated[str, AfterValidator(_check_pattern)]
Verb = Annotated[str, Field(pattern=r"^[^\W\d_]+\*?$")]
T = TypeVar("T")
ByLanguage = Annotated[dict[Annotated[str, AfterValidator(_check_language)], list[T]], BeforeValidator(_by_language)]


class Pii(Section):
    """`pii:` the action for personal data and secrets in an answer (`text/pii.py`); null = no search."""

    email: PiiAction | None
    phone: PiiAction | None
    card: PiiAction | None
    secret: PiiAction | None

    def kinds_with(self, *actions: PiiAction) -> list[pii.Kind]:
        """The kinds with one of these actions; without arguments, all with any action."""
        chosen = actions or get_args(PiiAction)
        return [kind for kind in get_args(pii.Kind) if getattr(self, kind) in chosen]


class GateConfig(Section):
    """`sample_gate:` the conditions under which an answer is kept."""

    # Families (`rules`) or names (`judge.factuality`) that must exist; other checks that exist must pass too.
    required: list[str]
    judge_f_threshold: Share
    judge_r_threshold: Share
    require_both: bool

    @property
    def score_thresholds(self) -> dict[str, float]:
        """By judge check, the lowest score (0..1) that passes."""
        return {rubric.check_name: getattr(self, rubric.threshold) for rubric in RUBRICS}


class QualityGates(Section):
    """`quality_gates:` minimums for SampleGate's report of a whole run; null = no gate."""

    min_total: Count | None  # answers that SampleGate decided
    min_keep_rate: Share | None  # share of them that is kept
    min_exec_pass_rate: Share | None  # share that executes
    min_gold_match_rate: Share | None  # share that matches the known answer
    min_judge_mean: Share | None  # mean of all judges' scores


class RegressionGate(Section):
    """`regression_gate:` how much worse than the accepted run a student may be; null = no gate.

    A gate is missed if the whole 95 % interval of the difference is beyond it: of the share of
    held-out answers that pass, and of the loss in nats per token.
    """

    max_pass_rate_drop: Share | None
    max_loss_rise: NonNegative | None


class FilterConfig(Section):
    """`configs/filters.yaml`: every threshold of the rules and of SampleGate.

    null, false and an empty list disable a rule. Lengths are of one answer. Lists by language are
    keyed by ISO 639-1 codes; `any` applies to every language, and a plain list is English.
    """

    shipped: ClassVar[str | None] = "filters.yaml"
    preset: PresetName | None  # null = that of each answer's task
    reject_flags: list[Annotated[str, AfterValidator(_check_flag)]]
    require_stop: bool
    min_char_length: Count | None
    max_char_length: Count | None
    min_token_length: Count | None
    max_token_length: Count | None
    require_action_verb: bool
    allowed_action_verbs: ByLanguage[Verb]
    ban_citations: bool
    citation_patterns: ByLanguage[Pattern]
    forbidden_patterns: list[Pattern]
    ban_unbalanced_code_fences: bool
    template_patterns: list[Pattern]
    ban_refusals: bool
    refusal_patterns: ByLanguage[Pattern]
    max_repetition: Share | None
    require_json_for: list[str]
    safety_patterns: dict[Annotated[str, Field(pattern="^[a-z0-9_]+$")], Pattern]
    pii: Pii
    sample_gate: GateConfig
    quality_gates: QualityGates
    regression_gate: RegressionGate

    @field_validator("max_char_length", "max_token_length")
    @classmethod
    def _above_minimum(cls, value: int | None, info: ValidationInfo) -> int | None:
        lower = str(info.field_name).replace("max", "min")
        # Fields are validated in order, so the minimum is there already.
        least = info.data.get(lower)
        if value is not None and least is not None and value < least:
            refuse_value(f"below {lower} ({least}), so no answer could pass")
        return value

    @field_validator("allowed_action_verbs")
    @classmethod
    def _some_verbs(cls, value: dict[str, list[str]], info: ValidationInfo) -> dict[str, list[str]]:
        if info.data.get("require_action_verb") and not any(value.values()):
            refuse_value("require_action_verb is true and no verb is allowed")
        return value


def load_filter_config(path: Path | str, task_preset: PresetName | None = None) -> FilterConfig:
    """Load the filters file; `task_preset` holds unless the file names a preset.

    A preset replaces thresholds of the shipped file; what a file of the user's sets wins. Raises
    InputMissing (66) or InputError (65) naming the key.
    """
    plain = load_yaml(Path(path), FilterConfig)
    preset = plain.preset or task_preset
    if preset and preset_path(Path(path), preset).is_file():
        return load_yaml(preset_path(Path(path), preset), FilterConfig)
    return load_yaml(Path(path), FilterConfig, preset=read_preset(preset)) if preset else plain


def preset_path(path: Path, preset: PresetName) -> Path:
    """`filters.chat.yaml` beside `filters.yaml`: all filters of that preset, as a launch freezes them."""
    return path.with_suffix(f".{preset}.yaml")


@functools.cache
def read_preset(name: PresetName) -> dict[str, Any]:
    """The keys of FilterConfig that the preset sets."""
    return read_yaml(PRESETS / f"{name}.yaml")
