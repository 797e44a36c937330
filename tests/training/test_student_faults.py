"""Faults that users of similar tools report, by their number: what a student reads, learns, says.

Others of the catalogue are tested beside what they are about: `grep -rn "def test_t[0-9]" tests`.
"""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from nexa_distill.errors import InputError
from nexa_distill.settings.pipeline import load_config
from nexa_distill.settings.student import StudentConfig
from nexa_distill.settings.yaml_loading import load_yaml
from nexa_train import teacher_logits, token_view, train_sft
from nexa_train.data.chat_template import fix_template
from nexa_train.data.chat_tokenization import IGNORE, ROW_REASONS, Sample, Skip, encode_conversation, student_format
from nexa_train.data.row_checks import CheckFailed, RowChecker
from nexa_train.models.generation import new_tokens
from nexa_train.models.loading import load_for_inference
from tests.data.test_chat_tokenization import ASK, SAY, made_of
from tests.data.test_preflight import Student
from tests.support.tiny_model import CHATML, tokenizer

Messages = list[dict[str, str]]
LINES = "One step.\nTwo steps.\n#### 3"
BY_HEART = {"epochs": 30, "learning_rate": 0.02, "save_every_steps": 1000, "eval_every_steps": 1000}


def chat(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def train(student: Student, name: str = "out") -> Path:
    storage, out = load_config(student.pipeline).storage, student.folder / name
    assert train_sft.run(load_yaml(student.config, StudentConfig), storage, student.dataset, out)
    return out / "final"


def set_values(student: Student, **values: Any) -> None:
    settings = yaml.safe_load(student.config.read_text())
    student.config.write_text(yaml.safe_dump(settings | values))


def users_answer(folder: Path, question: str) -> str:
    """What `generate` says with the folder's own settings, special tokens shown."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tok: Any = AutoTokenizer.from_pretrained(folder)
    asked = tok.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
    )
    out = model.generate(**asked, max_new_tokens=60, do_sample=False)
    return str(tok.decode(out[0, asked["input_ids"].shape[1] :]))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that knows an answer of three lines by heart. Its base model, as the bundled one
    was, stops at line breaks; its configuration names another end, as a base model's does."""
    student = Student(tmp_path_factory.mktemp("lines"), [chat(f"Solve {i}.", LINES) for i in range(8)], **BY_HEART)
    line_break = tokenizer()("\n", add_special_tokens=False)["input_ids"]
    change_json(student.model / "generation_config.json", eos_token_id=[0, *line_break])
    change_json(student.model / "config.json", eos_token_id=0)
    return train(student)


def test_t02_a_student_stops_where_its_template_ends_a_turn_and_nowhere_else(learned: Path) -> None:
    model, tok = load_for_inference(str(learned))
    form = student_format(tok)
    assert form.stop_tokens == [tok.convert_tokens_to_ids("<|im_end|>")]
    prompt = form.prompt_ids([{"role": "user", "content": "Solve 3."}])
    (said,) = new_tokens(model, tok, [prompt], max_new_tokens=60, temperature=0.0, top_k=0,
                         top_p=1.0, stops=form.stop_tokens, seed=0)  # fmt: skip
    assert tok.decode(said) == f"{LINES}<|im_end|>"


def test_t09_the_exported_folder_stops_by_itself(learned: Path) -> None:
    end = tokenizer().convert_tokens_to_ids("<|im_end|>")
    for name in ("generation_config.json", "config.json"):
        assert json.loads((learned / name).read_text())["eos_token_id"] == end, name
    assert users_answer(learned, "Solve 3.") == f"{LINES}<|im_end|>"


def test_t09_an_eos_token_that_is_not_the_end_of_a_turn_ends_no_turn() -> None:
    """A base model's: it ends documents. It stops generation too, and is no label."""
    tok = tokenizer()
    tok.eos_token = "<|endoftext|>"  # noqa: S105
    form = student_format(tok)
    assert form.end_text == "<|im_end|>"
    assert form.stop_tokens == [0, 2]
    made = made_of([ASK, SAY], tok)
    assert isinstance(made, Sample)
    assert made.labels[-1] == 2


def test_a_tokenizer_without_an_eos_token_is_trained() -> None:
    tok = tokenizer()
    tok.eos_token = None
    assert student_format(tok).stop_tokens == [2]


def nfc() -> Any:
    """As Qwen's tokenizers."""
    tok = tokenizer()
    tok.backend_tokenizer.normalizer = normalizers.NFC()
    return tok


@pytest.mark.parametrize(
    "text", ["5 \u2126", "cafe\u0301", "1.5 \u212b", "\u0958", "\uf900", "e\u0323\u0302", "\u1100\u1161"]
)
def test_t04_canonically_equal_text_is_the_same_text(text: str) -> None:
    assert isinstance(made_of(chat("How much?", f"It is {text} here."), nfc()), Sample)
    assert isinstance(made_of(chat(f"Is it {text}?", "Yes."), nfc()), Sample)


def test_t04_a_tokenizer_that_loses_characters_costs_the_rows_that_have_them() -> None:
    tok = tokenizer()
    tok.backend_tokenizer.normalizer = normalizers.NFKC()  # a superscript becomes a digit
    assert made_of(chat("Area?", "9 m\u00b2"), tok) == Skip("s", "answer_not_recoverable")
    assert isinstance(made_of(chat("Area?", "9 square metres"), tok), Sample)


def test_t05_a_refused_row_is_counted_named_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [chat(f"Say {i}.", "Yes.") for i in range(9)] + [chat("Say 9.", "Yes.<|endoftext|> No.")]
    report = Student(tmp_path, rows, max_refused_share=0.1).preflight(monkeypatch)
    assert report["trained_on"] == {"train": 9}
    assert report["refused"] == {"special_token_in_answer": 1}
    assert report["first_refused"] == {"special_token_in_answer": "row-9"}
    strict = Student(tmp_path / "strict", rows, max_refused_share=0.05)
    with pytest.raises(CheckFailed, match=r"special_token_in_answer 1, first row-9 \(an answer"):
        strict.preflight(monkeypatch)


DATED = (
    "{% if not day is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|im_start|>system\nToday: ' + day + '<|im_end|>\n' }}" + CHATML
)


def days_apart(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """Move the clock that transformers gives to templates; compiled templates keep the module."""
    from datetime import datetime, timedelta

    from transformers.utils import chat_template_utils

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Tomorrow":
            return super().now(tz) + timedelta(days=days)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)


def test_t07_a_template_with_the_date_renders_the_same_on_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    days_apart(monkeypatch, 400)
    plain = tokenizer(DATED).apply_chat_template([ASK], tokenize=False)
    days_apart(monkeypatch, 0)
    assert plain != tokenizer(DATED).apply_chat_template([ASK], tokenize=False), "the clock moves"
    fixed = fix_template(tokenizer(DATED), {}, date(2026, 1, 2))
    texts = set()
    for days in (0, 1, 400):
        days_apart(monkeypatch, days)
        texts.add(str(fixed.apply_chat_template([ASK], tokenize=False)))
    (text,) = texts
    assert "Today: 02 Jan 2026<|im_end|>" in text
    passed = fixed.apply_chat_template([ASK], tokenize=False, day="a feast")
    assert "Today: a feast" in passed, "what a caller passes wins"


def test_t07_a_cache_is_used_the_next_day_and_the_export_needs_no_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Student(tmp_path, epochs=1)
    (student.model / "chat_template.jinja").write_text(DATED)
    settings = yaml.safe_load(student.config.read_text())["distillation"]
    teacher = {"loss": "forward_kl", "source": "cache", "teacher": str(student.model)}
    set_values(student, distillation=settings | teacher)
    config, storage = (load_yaml(student.config, StudentConfig), load_config(student.pipeline).storage)
    first = student.preflight(monkeypatch)["samples_sha256"]
    table = teacher_logits.run(config, storage, student.dataset)
    made = table.stat().st_mtime_ns
    days_apart(monkeypatch, 1)
    final = train(student)
    assert table.stat().st_mtime_ns == made
    facts = json.loads((final / "training.json").read_text())
    assert facts["samples_sha256"] == first
    assert facts["settings"]["chat_template_date"] == "2026-01-01"
    text = AutoTokenizer.from_pretrained(final).apply_chat_template([ASK], tokenize=False)
    assert "Today: 01 Jan 2026" in text


@pytest.mark.parametrize("key", ["chat_template_date", "chat_template_kwargs"])
def test_t07_another_rendering_is_another_run(tmp_path: Path, key: str) -> None:
    student = Student(tmp_path)
    before = load_yaml(student.config, StudentConfig)
    set_values(student, **{key: date(2027, 1, 1) if "date" in key else {"enable_thinking": False}})
    after = load_yaml(student.config, StudentConfig)
    for settings in ("training_settings", "logits_settings", "rendering_settings"):
        assert getattr(before, settings)() != getattr(after, settings)(), settings


def test_variables_of_a_template_are_set_in_the_template_itself() -> None:
    template = "{{ '(quiet)' if enable_thinking is defined and not enable_thinking }}" + CHATML
    variables = {"enable_thinking": False, "tools_in": None, "names": ["a", 'b"'], "n": 2}
    tok = fix_template(tokenizer(template), variables, date(2026, 1, 1))
    assert tok.apply_chat_template([ASK], tokenize=False).startswith("(quiet)<|im_start|>")
    loud = tok.apply_chat_template([ASK], tokenize=False, enable_thinking=True)
    assert loud.startswith("<|im_start|>")
    again = fix_template(tok, {}, date(2026, 1, 1))
    assert again.chat_template == template, "the settings of another run are replaced"


@pytest.mark.parametrize("name", ["messages", "strftime_now", "not a name"])
def test_what_is_no_variable_of_a_template_is_refused(tmp_path: Path, name: str) -> None:
    student = Student(tmp_path)
    set_values(student, chat_template_kwargs={name: 1})
    with pytest.raises(InputError, match="no variable of a chat template"):
        load_yaml(student.config, StudentConfig)


def test_t12_a_token_without_an_embedding_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [chat(f"Say {i}.", "Yes.") for i in range(3)] + [chat("In tags?", "<answer>4</answer>")]
    student, tok = Student(tmp_path, rows), tokenizer()
    tok.add_tokens([f"<pad{i}>" for i in range(300 - len(tok))] + ["<answer>", "</answer>"])
    student.save(tok)
    with pytest.raises(CheckFailed, match=r"in sample row-3: token id 301 \('</answer>'\).*has 300"):
        student.preflight(monkeypatch)
    student.write(rows[:3])
    assert student.preflight(monkeypatch)["trained_on"] == {"train": 3}, "unused ones do no harm"


def test_t12_padding_that_the_model_has_no_embedding_for_is_not_used(tmp_path: Path) -> None:
    student, tok = Student(tmp_path, [chat("Say.", "Yes " * n) for n in range(1, 7)]), tokenizer()
    tok.add_tokens([f"<more{i}>" for i in range(300 - len(tok))])
    tok.add_special_tokens({"pad_token": "<pad>"})
    assert tok.pad_token_id == 300
    student.save(tok)
    for packing in (True, False):
        settings = yaml.safe_load(student.config.read_text())
        set_values(student, train=settings["train"] | {"packing": packing, "epochs": 1})
        final = train(student, f"packing-{packing}")
        assert json.loads((final / "generation_config.json").read_text())["pad_token_id"] == 2


def test_t15_the_preflight_refuses_a_quantised_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student(tmp_path, [[ASK, SAY]])
    change_json(student.model / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(InputError, match=r"a quantised checkpoint \(fp8\) cannot be trained"):
        student.preflight(monkeypatch)


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("How?", "Each ends with <|endoftext|> and goes on.", "special_token_in_answer"),
        ("How?", "Like this: <|im_start|>user", "special_token_in_answer"),
        ("Show <|im_end|>\n<|im_start|>assistant\nSure", "So.", "special_token_in_prompt"),
    ],
)
def test_t17_text_that_the_tokenizer_reads_as_special_tokens_costs_its_row(
    question: str, answer: str, reason: str
) -> None:
    assert made_of(chat(question, answer)) == Skip("s", reason)
    assert reason in ROW_REASONS


def test_t17_a_tokens_text_in_another_tokenizer_is_text() -> None:
    assert isinstance(made_of(chat("What is </s>?", "It ends [INST] and <s>.")), Sample)


def test_t18_several_templates_without_a_default_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student(tmp_path, [[ASK, SAY]])
    student.save(tokenizer({"tool_use": CHATML, "rag": CHATML}))
    with pytest.raises(CheckFailed, match=r"none of them named default.*(tool_use|rag)"):
        student.preflight(monkeypatch)


def test_t20_a_prompt_that_leaves_no_room_has_no_answer_and_its_neighbours_have_theirs(tmp_path: Path) -> None:
    student = Student(tmp_path)
    change_json(student.model / "config.json", max_position_embeddings=64)
    model, tok = load_for_inference(str(student.model))
    prompts = [[5] * 64, [5] * 60, [5] * 3, []]
    made = new_tokens(model, tok, prompts, max_new_tokens=10, temperature=0.0, top_k=0, top_p=1.0,
                      stops=[299], seed=0)  # fmt: skip
    assert [len(tokens) for tokens in made] == [0, 4, 4, 0]


def test_t22_a_base_models_contradictory_sampling_settings_do_no_harm(tmp_path: Path) -> None:
    student = Student(tmp_path, epochs=1)
    change_json(student.model / "generation_config.json", do_sample=False, temperature=0.9, top_p=0.6)
    found = json.loads((train(student) / "generation_config.json").read_text())
    assert found["eos_token_id"] == 2
    assert "temperature" not in found


def test_t23_the_folder_has_the_names_that_transformers_4_reads(tmp_path: Path) -> None:
    student = Student(tmp_path, epochs=1)
    change_json(student.model / "config.json",
                rope_parameters={"rope_type": "default", "rope_theta": 1e6})  # fmt: skip
    change_json(student.model / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    final = train(student)
    config = json.loads((final / "config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"]) == (1e6, "bfloat16")
    assert config["rope_parameters"]["rope_theta"] == 1e6
    tok = json.loads((final / "tokenizer_config.json").read_text())
    assert tok["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "the names that transformers 4 reads" in (final / "README.md").read_text()


def test_t25_a_learning_rate_that_yaml_reads_as_text_says_how_to_write_it(tmp_path: Path) -> None:
    student = Student(tmp_path)
    text = student.config.read_text().replace("learning_rate: 0.003", "learning_rate: 2e-5")
    student.config.write_text(text)
    with pytest.raises(InputError, match=r"learning_rate is '2e-5'.*write 2\.0e-5"):
        load_yaml(student.config, StudentConfig)


def test_t28_another_max_length_is_another_run_and_a_failed_one_leaves_the_last(tmp_path: Path) -> None:
    student = Student(tmp_path, epochs=1)
    final = train(student)
    before = (final / "model.safetensors").stat().st_mtime_ns
    settings = yaml.safe_load(student.config.read_text())
    set_values(student, train=settings["train"] | {"max_length": 20})
    with pytest.raises(CheckFailed, match="over_max_length"):
        train(student)
    assert (final / "model.safetensors").stat().st_mtime_ns == before


def test_t08_the_shown_tokens_keep_their_spaces() -> None:
    """Each decoded by itself, SentencePiece's would lose the space that a word begins with."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "</s>", "\u2581", *(f"\u2581{w}" for w in ("the", "sky", "is", "blue")), "."]
    plain = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, "<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    plain.decoder = decoders.Metaspace()
    tok: Any = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")  # type: ignore[no-untyped-call]  # noqa: S106
    ids = tok("the sky is blue")["input_ids"]
    shown = token_view.decode_tokens(tok, Sample("a", ids, ids))
    assert "".join(text for text, _, _ in shown) == "the sky is blue"


def test_every_turn_follows_what_inference_reads() -> None:
    """The check asks of each answer, not of the first alone."""
    examination = RowChecker(tokenizer(), None)
    talk = [ASK, SAY, ASK, {"role": "assistant", "content": "Eight."}]
    made = encode_conversation(examination.chat_format, "s", talk, None)
    assert isinstance(made, Sample)
    check = examination.checks["template_equal"]
    assert check(made, talk) == ""
    second = made.input_ids.index(2, made.labels.index(2) + 1)
    moved = Sample("s", [*made.input_ids], [*made.labels])
    moved.input_ids[second + 5] = 99  # in the second question
    assert moved.labels[second + 5] == IGNORE
    assert "before message 3" in str(check(moved, talk))
