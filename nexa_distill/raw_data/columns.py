"""Find the columns of a raw row with the prompt, its context, its answer, or the text for new prompts.

`defaults:` and `answers.column` name them. Other names (`question`, `prompt_text`, Alpaca's `instruction` and `input`)
are recognized if only one reading is possible, and a line reports it; otherwise InputError (65)
lists the settings to choose from. A column that looks like prompts is never ignored silently.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
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
# Words of the name of an answer. `model_answer` contains answers, `answer_type` and `num_answers` do not.
_ANSWER_WORDS = (
    "answer answers output outputs response responses completion completions solution solutions reply replies "
    "antwort antworten reponse reponses respuesta respuestas resposta respostas risposta risposte antwoord "
    "odpowiedz cevap yanit ответ ответы решение 答案 回答 答え 解答 답변 답 إجابة الإجابة جواب الجواب उत्तर คำตอบ"
)
_COUNT_WORDS = "id ids no nr num number count has is"
ANSWER_WORDS, COUNT_WORDS = frozenset(_ANSWER_WORDS.split()), frozenset(_COUNT_WORDS.split())
TEXT_NAMES = frozenset({"context", "text", "passage", "paragraph", "document", "article", "background", "story"})
# Columns that are copied to each prompt of their row.
PASSED_ON = ("domain", "system_prompt", "schema", "gold_sql", "database", "tests")
PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class ColumnLayout:
    """How the rows with the same columns are read."""

    source: str
    prompt: str | None = None  # column of existing prompts; None = prompts are made from the text in `source`
    addition: str | None = None  # column whose text is appended to the prompt (Alpaca's `input`)
    context: str | None = None  # column of the prompt's context, if it is not `defaults.context_column`
    with_context: bool = False  # the context is put before the prompt, unless the prompt contains it
    notes: list[str] = field(default_factory=list)  # for the user


def looks_like_prompts(name: str) -> bool:
    plain = _normalize_name(name)
    words = set(plain.split("_"))
    # `question` contains prompts, `question_id` does not.
    return plain in WHOLE_NAMES or bool(words & PROMPT_WORDS and not words & OTHER_WORDS)


def looks_like_answers(name: str) -> bool:
    # Without accents: `Réponse` has two spellings in Unicode, and people leave them out.
    words = unicodedata.normalize("NFKD", _normalize_name(name)).split("_")
    plain = ["".join(c for c in word if not "\u0300" <= c <= "\u036f") for word in words]
    composed = [unicodedata.normalize("NFKC", word) for word in plain]
    if not ANSWER_WORDS & set(composed) or COUNT_WORDS & set(composed):
        return False
    # The last word says what it is: `model_answer` is an answer, `answer_model` is not.
    return composed[-1] in ANSWER_WORDS or not (set(composed) - ANSWER_WORDS) & (OTHER_WORDS | PROMPT_WORDS)


def _normalize_name(name: str) -> str:
    """`user_prompt` for `User Prompt`, `userPrompt` and `user-prompt`, in one spelling of Unicode."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", unicodedata.normalize("NFKC", name).strip())
    # Letters, their marks (vowels of Hindi, Thai, Arabic) and digits; anything else separates words.
    kept = (c if unicodedata.category(c)[0] in "LMN" else "_" for c in words)
    return re.sub("_+", "_", "".join(kept)).strip("_").casefold()


def find_layout(values: Mapping[str, Any], columns: Columns, where: str, answer: str | None = None) -> ColumnLayout:
    """The layout of a row; `answer`: its column of answers, which is none of prompts.

    Raises InputError naming `where` when there is no layout or more than one.
    """
    prompts = [name for name, value in values.items() if name != answer and _is_prompt(name, value, columns)]
    configured = columns.prompt_column
    if configured is not None and configured in values:
        return _configured_layout(values, columns, [name for name in prompts if name != configured])
    texts = [name for name in (columns.context_column, columns.text_column) if name in values]
    if configured is None or not prompts:
        return _text_layout(values, texts, columns, where)
    return _recognized_layout(values, columns, prompts, where, answer)


def find_answer_column(
    rows: Sequence[Mapping[str, Any]], columns: Columns, configured: str | None, where: str
) -> str | None:
    """The column of these rows with the answers to their prompts; None without one.

    `configured`: `answers.column`. A column with another purpose (the reference, a gold query) is no
    answer. Raises InputError naming `where` when several columns look like answers.
    """
    taken = {columns.prompt_column, columns.context_column, columns.text_column, columns.reference_column}
    taken |= {columns.task_type_column, *columns.id_columns, *PASSED_ON, *PLACEHOLDER.findall(columns.prompt_template)}
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in taken]
    if configured is not None:
        return configured if configured in names else None
    likely = [n for n in names if looks_like_answers(n) and _holds_texts(row.get(n) for row in rows)]
    # `answer` beside `answer_text` or `model_answer`: the plain name is meant.
    plain = [name for name in likely if _normalize_name(name) in ANSWER_WORDS] or likely
    if len(plain) > 1:
        raise InputError(_explain_answers(where, plain))
    return plain[0] if plain else None


def _holds_texts(values: Iterable[Any]) -> bool:
    kinds = [value for value in values if value is not None]
    return bool(kinds) and all(isinstance(v, str | int | float | Decimal) and not isinstance(v, bool) for v in kinds)


def _explain_answers(where: str, names: Sequence[str]) -> str:
    lines = [f"answers: {{column: {name}}} takes the answers from column {name}" for name in names]
    lines.append("answers: {from_input: false} (or --provider NAME) asks a teacher")
    return (
        f"{where}: columns {', '.join(names)} all look like answers; write one of these into your "
        f"configuration: {'; '.join(lines)}"
    )


def _is_prompt(name: str, value: Any, columns: Columns) -> bool:
    others = {columns.context_column, columns.text_column}
    others |= {columns.reference_column, columns.task_type_column}
    is_number = isinstance(value, int | float)  # the number of a question, or of questions
    return name not in others and not is_number and looks_like_prompts(name)


def _configured_layout(values: Mapping[str, Any], columns: Columns, others: list[str]) -> ColumnLayout:
    prompt = str(columns.prompt_column)
    addition = _find_addition(prompt, values, columns)
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


def _recognized_layout(
    values: Mapping[str, Any], columns: Columns, prompts: list[str], where: str, answer: str | None
) -> ColumnLayout:
    addition = next((a for p in prompts if (a := _find_addition(p, values, columns))), None)
    candidates = [name for name in prompts if name != addition]
    context = _find_column(columns.context_column, values)
    rivals = [n for n in values if n != context and n in (columns.text_column, *_passage_columns(values))]
    if len(candidates) > 1 or (rivals and not addition):
        raise InputError(_explain_choices(where, candidates, context or next(iter(rivals), None)))
    prompt = candidates[0]
    read = {prompt, addition, context, answer, *PLACEHOLDER.findall(columns.prompt_template)}
    parts = [f"the prompt is column {prompt}"]
    parts += [f"with column {addition} behind it"] if addition else []
    parts += [f"behind the text of column {context}"] if context else []
    unread = [name for name in values if name not in read and _is_unread(name, columns)]
    hint = next((name for name in unread if _normalize_name(name) in ANSWER_WORDS), None)
    notes = [
        f"{', '.join(parts)} (defaults.prompt_column and prompt_template choose otherwise)"
        + (f"; not read: {', '.join(unread)}" if unread else "")
        + (f" (defaults.reference_column: {hint} makes it the known answer)" if hint else "")
    ]
    return ColumnLayout(prompt, prompt, addition, context, context is not None, notes)


def _find_column(name: str, values: Mapping[str, Any]) -> str | None:
    """The column of this name, or with its words in another spelling: `Context` for `context`."""
    if name in values:
        return name
    return next((other for other in values if _normalize_name(other) == _normalize_name(name)), None)


def _passage_columns(values: Mapping[str, Any]) -> list[str]:
    return [
        name for name, value in values.items() if _normalize_name(name) in TEXT_NAMES and isinstance(value, str | None)
    ]


def _find_addition(prompt: str, others: Iterable[str], columns: Columns) -> str | None:
    is_instruction = {"instruction", "instructions"} & set(_normalize_name(prompt).split("_"))
    name = next((name for name in others if name != prompt and _normalize_name(name) == "input"), None)
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


def _text_layout(values: Mapping[str, Any], texts: list[str], columns: Columns, where: str) -> ColumnLayout:
    if texts:
        return ColumnLayout(texts[0])
    likely = _passage_columns(values)
    if len(likely) == 1:
        note = f"the text is column {likely[0]} (defaults.text_column chooses another)"
        return ColumnLayout(likely[0], notes=[note])
    names = [n for n in (columns.prompt_column, columns.context_column, columns.text_column) if n]
    hint = next((h for name in names if (h := did_you_mean(name, values))), "")
    raise InputError(
        f"{where}: none of the columns {', '.join(names)} exists{hint}; "
        f"found: {', '.join(values)}. Rename the column, or set its name in `defaults:`"
    )
