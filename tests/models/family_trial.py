"""What the pipeline makes of one model family: trained on a few answers until it knows them by
heart, exported, and asked again. `page` is the table of all, made by what the tests ask too.
"""

import html
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from transformers.utils import logging

from nexa_distill.contracts import INPUTS, SFT, TABLES
from nexa_distill.errors import NexaError
from nexa_distill.settings.pipeline import DistillConfig
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_distill.storage.tables import read_table
from nexa_train import generate_student, train_sft
from nexa_train.data.chat_format import FAULTS, ChatFormat, ChatRefused, Message, chat_format
from nexa_train.data.chat_tokenization import IGNORE, Sample, comparable_text, encode_conversation, student_format
from nexa_train.models.loading import load_student_tokenizer, load_tokenizer
from tests.families import Family
from tests.support import exam
from tests.support.answers import answer, project
from tests.support.tiny_model import ROOT

ZONES = ("Etc/GMT+12", "Pacific/Kiritimati")  # 26 hours apart: never on the same day

SYSTEM: Message = {"role": "system", "content": "Answer in few words."}
THOUGHT = "<think>\nI count them.\n</think>\n\n"
ANSWERS = {
    "How many colours does a rainbow have?": "Seven.\nThe first one is red.",
    "Name two large cities.": "Zürich, and 北京.\n\nNeither is \u212bngstro\u0308m.",
    "Why is it so?": "(Nobody knows.)",
}

QUESTIONS = list(ANSWERS)
GREETING = "Hello, are you there?"  # only before another question: Qwen3 answers it otherwise then
ANSWERS[GREETING] = "Yes, I am."


def ask(question: str) -> list[Message]:
    """The conversation before an answer."""
    return [SYSTEM, {"role": "user", "content": question}]


def conversation(*questions: str, reasoned: bool = False) -> list[Message]:
    """The questions with their answers."""
    turns = [SYSTEM]
    for question in questions:
        said = (THOUGHT if reasoned else "") + ANSWERS[question]
        turns += [*ask(question)[1:], {"role": "assistant", "content": said}]
    return turns


@dataclass(frozen=True)
class Trial:
    """One family, trained (or refused) in `folder` and asked all it was trained on."""

    family: Family
    folder: Path
    config: DistillConfig
    student: StudentConfig
    refused: NexaError | None
    seconds: float

    @property
    def final(self) -> Path:
        """The exported checkpoint."""
        return self.student.checkpoint_path(self.config.storage)

    @cached_property
    def base(self) -> Any:
        """The tokenizer as shipped."""
        return load_tokenizer(self.student.student)

    @cached_property
    def format(self) -> ChatFormat:
        """The format that it was trained with. Raises ChatRefused."""
        return chat_format(load_student_tokenizer(self.student.student, self.student))

    @cached_property
    def why_refused(self) -> str:
        """The reason of the tokenizer or template, a key of FAULTS; "" = none."""
        try:
            student_format(load_student_tokenizer(self.student.student, self.student))
        except ChatRefused as error:
            return error.reason
        return ""

    def sample(self, question: str) -> Sample:
        """The row as it was trained on."""
        made = encode_conversation(self.format, question, conversation(question, reasoned=self.family.reasoned), None)
        assert isinstance(made, Sample), made
        return made

    def reason(self, messages: Sequence[Message]) -> str:
        """Why such a row is refused; "" = it is trained on."""
        made = encode_conversation(self.format, "row", messages, None)
        return "" if isinstance(made, Sample) else made.reason

    @cached_property
    def preflight(self) -> dict[str, Any]:
        """The report."""
        path = self.config.storage.path_of("reports") / "training" / "preflight.json"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def answers(self) -> dict[str, dict[str, Any]]:
        """By question, the rows of `generate_student`."""
        out = self.folder / "answers.parquet"
        generate_student.run(self.config, self.student, only="trained", checkpoint=self.final, dst=out)
        return {row["user_prompt"]: row for row in read_table(out, TABLES["student_outputs"]).to_pylist()}


def try_family(family: Family, folder: Path) -> Trial:
    """Train it on ANSWERS, until it knows them by heart."""
    config = project(folder)
    student = _settings(family, folder)
    asked = [
        answer(i, None, split="test", user_prompt=question, system_prompt=SYSTEM["content"])
        for i, question in enumerate(QUESTIONS)
    ]
    exam.write(config, "raw_dataset", INPUTS, [{n: row[n] for n in INPUTS.names} for row in asked])
    dataset = exam.write(config, "sft_parquet", SFT, _rows(family))
    start = time.perf_counter()
    refused = None
    try:
        train_sft.run(student, config.storage, dataset, student.checkpoint_path(config.storage).parent)
    except NexaError as error:
        refused = error
    return Trial(family, folder, config, student, refused, time.perf_counter() - start)


def _settings(family: Family, folder: Path) -> StudentConfig:
    values = yaml.safe_load((ROOT / "configs/baseline_distill.yaml").read_text())
    values |= {
        "student": str(family.save(folder / "model")), "keep_layers": None,
        "chat_template_kwargs": dict(family.variables),
    }  # fmt: skip
    values["train"] |= {
        "epochs": 30, "batch_size": 4, "learning_rate": 0.02,
        "max_refused_share": 0.2, "save_every_steps": 1000, "eval_every_steps": 1000,
    }  # fmt: skip
    values["generate"] |= {"max_new_tokens": 60, "temperature": 0.0}
    (folder / "student.yaml").write_text(yaml.safe_dump(values))
    return load_yaml(folder / "student.yaml", StudentConfig)


def _rows(family: Family) -> list[dict[str, Any]]:
    """Each question in train and in val, and in train one row of two turns."""
    talks: list[tuple[str, str, tuple[str, ...]]] = [("train", "turns", (GREETING, QUESTIONS[0]))]
    talks += [(split, name, (name,)) for name in QUESTIONS for split in ("train", "val")]
    return [
        {
            "sample_id": f"{split} {name}", "split": split,
            "messages": conversation(*questions, reasoned=family.reasoned),
            "template_name": "hypothesis", "domain": "test", "model_id": "m", "attempt": 0,
        }
        for split, name, questions in talks
    ]  # fmt: skip


@contextmanager
def in_zone(zone: str) -> Iterator[None]:
    """The clock of another place, where it may be another day."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = zone
    time.tzset()
    try:
        yield
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


def be_quiet() -> None:
    """One thread, no progress bars."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


# The table


INTRODUCTION = """# Model families

What the pipeline does with the chat templates, tokenizers and stop tokens of public models. Each
line is a tiny model with random weights, whose template and tokenizer behave as those of the public
model that is named (no file of that model is used). It was trained on a few answers until it knew
them by heart, exported, loaded again and asked. "trained" in the last column means that its masks
were right, that the exported folder's own `generate` ends where an answer ends, and that its
template gives the prompt of the training on any day. A public model may have changed since:
`python -m nexa_train.preflight` tells what is true of yours, before anything is spent.

This page is printed by `python -m tests.families > docs/model-families.md`; a test compares them.

"""
COLUMNS = (
    "family", "behaves like", "end of an answer", "other stop tokens", "system text",
    "date in the template", "written before an answer, in the loss",
    "reasoning (`<think>` in an answer)",
    "several turns", "result",
)  # fmt: skip
NONE = "-"


def page(families: Sequence[Family]) -> str:
    """docs/model-families.md."""
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for family in families:
        with TemporaryDirectory() as folder:
            lines.append(line(try_family(family, Path(folder))))
    return INTRODUCTION + "".join(lines)


def line(trial: Trial) -> str:
    """The family's line of the table."""
    family, why = trial.family, trial.why_refused
    cells = [family.name, _model(family.model)]
    try:
        form = trial.format
        cells += [_code(form.end_text), _other_stops(trial), _system_text(trial), _date(trial)]
    except ChatRefused:
        cells += [NONE] * 4
    if why or trial.refused:
        cells += [NONE] * 3
        said = FAULTS[why] if why else str(trial.refused).removesuffix(". Nothing was trained")
        return _line([*cells, f"refused: {html.escape(said, quote=False)}"])
    reasons = [
        trial.reason(conversation(QUESTIONS[0], reasoned=True)),
        trial.reason(conversation(GREETING, QUESTIONS[0], reasoned=family.reasoned)),
    ]
    cells += [_code(lead_of(trial, QUESTIONS[0]))]
    cells += [f"row refused: {reason}" if reason else "trained" for reason in reasons]
    plain = trial.reason(conversation(QUESTIONS[0]))
    result = f"trained; a row without reasoning is refused: {plain}" if plain else "trained"
    return _line([*cells, result])


def lead_of(trial: Trial, question: str) -> str:
    """What the loss has before the words of the answer, white space aside."""
    trained = [label for label in trial.sample(question).labels if label != IGNORE]
    text = comparable_text(trial.format.tokenizer.decode(trained))
    thought = comparable_text(THOUGHT).removeprefix("<think>") if trial.family.reasoned else ""
    words = comparable_text(ANSWERS[question])
    return text.partition(words)[0].removeprefix(thought)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>" if text else NONE


def _model(name: str) -> str:
    return name if ":" in name else f"[{name}](https://huggingface.co/{name})"


def _other_stops(trial: Trial) -> str:
    form = trial.format
    others = [stop for stop in form.stop_tokens if stop != form.end]
    return ", ".join(_code(form.tokenizer.convert_ids_to_tokens(stop)) for stop in others) or NONE


def _system_text(trial: Trial) -> str:
    """Where it is: what is before the user's words with and without one tells."""
    form, user = trial.format, ask(QUESTIONS[0])[1]
    alone = form.render([user], prompt=True).partition(user["content"])[0]
    between = form.render([SYSTEM, user], prompt=True).partition(SYSTEM["content"])[2]
    between = between.partition(user["content"])[0]
    where = "a role of its own" if between[-4:] == alone[-4:] else "in the user's turn"
    if form.folds_system:
        where = "in the user's turn, put there by the pipeline"
    default = "You are" in alone or "A chat" in alone
    return where + ("; a default text without one" if default else "")


def _date(trial: Trial) -> str:
    user = ask(QUESTIONS[0])[1:]
    if _changes_with_clock(trial, ask(QUESTIONS[0])):
        return "today's; the run's date is written"
    if _changes_with_clock(trial, user):
        return "today's, in the default system text; the run's date is written"
    if trial.base.apply_chat_template(user, tokenize=False, date_string="?") != (
        trial.base.apply_chat_template(user, tokenize=False)
    ):
        return "a variable with a default (`date_string`)"
    return NONE


def _changes_with_clock(trial: Trial, messages: Sequence[Message]) -> bool:
    texts = set()
    for zone in ZONES:
        with in_zone(zone):
            texts.add(trial.base.apply_chat_template(trial.format.plain_messages(messages), tokenize=False))
    return len(texts) > 1
