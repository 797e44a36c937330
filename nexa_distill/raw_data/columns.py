"""Find the columns of a raw row that contain the prompt, its context, or the text for new prompts.

`defaults:` names them. Other names (`question`, `prompt_text`, Alpaca's `instruction` and `input`)
are recognized if only one reading is possible, and a line reports it; otherwise InputError (65)
lists the settings to choose from. A column that looks like prompts is never ignored silently.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexa_distill.errors import InputError, did_you_mean
from nexa_distill.settings.pipeline import Columns

# Words of a column's name. A name with a word of the second list describes prompts: `prompt_id`.
_PROMPT_WORDS = (
    "prompt prompts question questions instruction instructions query queries problem problems "
    "messages conversation conversations dialog dialogue "
    "frage fragen pregunta preguntas pergunta perguntas domanda domande vraag pytanie soru "
    "вопрос задача 问题 問題 質問 질문 سؤال السؤال प्रश्न คำถาม"
)
_OTHER_WORDS = (
    "id ids no nr number count index idx type types kind tokens token length len chars source src "
    "url date time hash key category level lang language system name title split template topic "
    "difficulty label score rating tag tags answer answers response responses model version set "
    "embedding column file is has num"
)
PROMPT_WORDS, OTHER_WORDS = frozenset(_PROMPT_WORDS.split()), frozenset(_OTHER_WORDS.split())
WHOLE_NAMES = frozenset({"q", "input", "user_input", "input_text", "user_message"})
TEXT_NAMES = frozenset({"context", "text", "passage", "paragraph", "document", "article", "background", "story"})
ANSWER_NAMES = frozenset({"answer", "answers", "output", "response", "completion", "solution"})
# Columns that are copied to each prompt of their row.
PASSED_ON = ("domain", "system_prompt", "schema", "gold_sql", "database", "tests")
PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class ColumnLayout:
    """How the rows with the same columns are read."""

    source: str
    prompt: str | None = None  # column of existing prompts; None = prompts are made from the text in `source`
    addition: str | None = None  # column whose text is appended to the prompt (Alpaca's `input`)
    with_context: bool = False  # the context is put before the prompt, unless the prompt contains it
    notes: list[str] = field(default_factory=list)  # for the user


def looks_like_prompts(name: str) -> bool:
    plain = _normalize_name(name)
    words = set(plain.split("_"))
    # `question` contains prompts, `question_id` does not.
    return plain in WHOLE_NAMES or bool(words & PROMPT_WORDS and not words & OTHER_WORDS)


def _normalize_name(name: str) -> str:
    """`user_prompt` for `User Prompt`, `userPrompt` and `user-prompt`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\W_]+", "_", words).strip("_").casefold()


def find_layout(values: Mapping[str, Any], columns: Columns, where: str) -> ColumnLayout:
    """The layout of a row. Raises InputError naming `where` when there is none or more than one."""
    prompts = [name for name, value in values.items() if _is_prompt(name, value, columns)]
    configured = columns.prompt_column
    if configured is not None and configured in values:
        return _configured_layout(columns, [name for name in prompts if name != configured])
    texts = [name for name in (columns.context_column, columns.text_column) if name in values]
    if configured is None or not prompts:
        return ColumnLayout(_text_column(values, texts, columns, where))
    return _recognized_layout(values, columns, prompts, where)


def _is_prompt(name: str, value: Any, columns: Columns) -> bool:
    others = {columns.context_column, columns.text_column}
    others |= {columns.reference_column, columns.task_type_column}
    is_number = isinstance(value, int | float)  # the number of a question, or of questions
    return name not in others and not is_number and looks_like_prompts(name)


def _configured_layout(columns: Columns, others: list[str]) -> ColumnLayout:
    prompt = str(columns.prompt_column)
    addition = _find_addition(prompt, others, columns)
    shown = set(PLACEHOLDER.findall(columns.prompt_template))
    unread = [name for name in others if name not in {addition, *shown}]
    notes = []
    if addition:
        notes.append(f"the prompt is column {prompt} with column {addition} behind it")
    if unread:
        notes.append(
            f"column {', '.join(unread)} looks like prompts too and is not read: defaults.prompt_column is {prompt}"
        )
    return ColumnLayout(prompt, prompt, addition, notes=notes)


def _recognized_layout(values: Mapping[str, Any], columns: Columns, prompts: list[str], where: str) -> ColumnLayout:
    addition = next((a for p in prompts if (a := _find_addition(p, prompts, columns))), None)
    candidates = [name for name in prompts if name != addition]
    context = columns.context_column if columns.context_column in values else None
    rivals = [n for n in values if n != context and n in (columns.text_column, *_passage_columns(values))]
    if len(candidates) > 1 or (rivals and not addition):
        raise InputError(_explain_choices(where, candidates, context or next(iter(rivals), None)))
    prompt = candidates[0]
    read = {prompt, addition, context, *PLACEHOLDER.findall(columns.prompt_template)}
    parts = [f"the prompt is column {prompt}"]
    parts += [f"with column {addition} behind it"] if addition else []
    parts += [f"behind the text of column {context}"] if context else []
    unread = [name for name in values if name not in read and _is_unread(name, columns)]
    hint = next((name for name in unread if _normalize_name(name) in ANSWER_NAMES), None)
    notes = [
        f"{', '.join(parts)} (defaults.prompt_column and prompt_template choose otherwise)"
        + (f"; not read: {', '.join(unread)}" if unread else "")
        + (f" (defaults.reference_column: {hint} makes it the known answer)" if hint else "")
    ]
    return ColumnLayout(prompt, prompt, addition, context is not None, notes)


def _passage_columns(values: Mapping[str, Any]) -> list[str]:
    return [
        name for name, value in values.items() if _normalize_name(name) in TEXT_NAMES and isinstance(value, str | None)
    ]


def _find_addition(prompt: str, others: Sequence[str], columns: Columns) -> str | None:
    is_instruction = {"instruction", "instructions"} & set(_normalize_name(prompt).split("_"))
    name = next((name for name in others if _normalize_name(name) == "input"), None)
    # Alpaca's `input` is the second part of its `instruction`, unless the template places it.
    return name if is_instruction and f"{{{name}}}" not in columns.prompt_template else None


def _is_unread(name: str, columns: Columns) -> bool:
    named = {columns.task_type_column, columns.reference_column, *columns.id_columns, *PASSED_ON}
    return bool(name) and name not in named


def _explain_choices(where: str, prompts: list[str], text: str | None) -> str:
    first = prompts[0]
    lines = [f"defaults: {{prompt_column: {name}}} asks column {name} alone" for name in prompts]
    if text:
        template = r'prompt_template: "{context}\n\n{prompt}"'
        lines.append(
            f"defaults: {{prompt_column: {first}, context_column: {text}, {template}}} asks "
            f"{first} about the text in {text}"
        )
        lines.append(f"defaults: {{prompt_column: null}} makes new prompts from the text in {text}")
    conflict = f"column {first} looks like prompts and column {text} holds texts"
    if len(prompts) > 1:
        conflict = f"columns {', '.join(prompts)} all look like prompts"
    return f"{where}: {conflict}; write one of these into your configuration: {'; '.join(lines)}"


def _text_column(values: Mapping[str, Any], texts: list[str], columns: Columns, where: str) -> str:
    if texts:
        return texts[0]
    names = [n for n in (columns.prompt_column, columns.context_column, columns.text_column) if n]
    hint = next((h for name in names if (h := did_you_mean(name, values))), "")
    raise InputError(
        f"{where}: none of the columns {', '.join(names)} exists{hint}; "
        f"found: {', '.join(values)}. Rename the column, or set its name in `defaults:`"
    )
