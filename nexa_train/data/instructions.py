"""Instruction data: JSON lists of `{instruction, input, output}`, and their user messages.

`input` may be empty; an empty `output` is not written yet. A Jinja file over `instruction` and
`input` renders the user message: `prompts/system1.jinja` copies them, `prompts/system2.jinja` asks
for reasoning too. Training and inference render the same file.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nexa_distill.errors import InputError, InputMissing
from nexa_distill.text.hashing import compact_json, sha256_text

Mode = Literal["system1", "system2"]
PROMPTS = Path(__file__).parents[1] / "prompts"
# Sandboxed: templates are user files. Without escapes: a prompt is no HTML.
_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
Item = dict[str, Any]  # KEYS, all strings; other keys are kept
Prompt = Callable[[Mapping[str, str]], str]
KEYS = ("instruction", "input", "output")


def read_json(path: Path) -> Any:
    """The value of a UTF-8 JSON file. Raises InputMissing (66) or InputError (65)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputMissing(f"{path}: no such file (looked in {Path.cwd()})") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not JSON that can be read ({error})") from None


def read_items(path: Path) -> list[Item]:
    """Missing keys and null become empty, numbers become text. Raises InputError naming the item."""
    data = read_json(path)
    if not isinstance(data, list):
        raise InputError(f"{path}: found {type(data).__name__}, expected a list of objects")
    return [_parse_item(path, number, value) for number, value in enumerate(data)]


def _parse_item(path: Path, number: int, value: Any) -> Item:
    where = f"{path}: item {number}"
    if not isinstance(value, dict):
        raise InputError(f"{where} is {str(value)[:60]!r}, expected an object")
    texts = {key: convert_to_text(where, key, value.get(key)) for key in KEYS}
    if not texts["instruction"].strip():
        raise InputError(f"{where}: has no instruction, expected text")
    return {**value, **texts}


def convert_to_text(where: str, key: str, value: Any) -> str:
    """0 and False are "0" and "False", null and not-a-number are empty. Raises InputError for a list or an object."""
    if value is None or value != value:  # the second is NaN, null in a table
        return ""
    if not isinstance(value, str | int | float):
        raise InputError(f"{where}: {key} is {str(value)[:60]!r}, expected a string or a number")
    return str(value)


def load_prompt(path: Path) -> Prompt | None:
    """The renderer of user messages; None if the file does not use `instruction`. Raises InputMissing, InputError."""
    try:
        text = path.read_text(encoding="utf-8")
        names = meta.find_undeclared_variables(_JINJA.parse(text))
        template = _JINJA.from_string(text)
    except FileNotFoundError:
        raise InputMissing(f"{path}: no such template (looked in {Path.cwd()})") from None
    except (TemplateError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a Jinja template ({error})") from None
    # It renders whole conversations then, as the model's own chat template does.
    if "instruction" not in names:
        return None
    if unknown := sorted(names - {"instruction", "input"}):
        raise InputError(f"{path}: uses {', '.join(unknown)}; it is given instruction and input")

    def render_prompt(item: Mapping[str, str]) -> str:
        return template.render(instruction=item["instruction"], input=item.get("input", ""))

    return render_prompt


def shipped_prompt(mode: Mode) -> Prompt:
    prompt = load_prompt(PROMPTS / f"{mode}.jinja")
    # The file is beside the code, so a user may have edited it.
    if prompt is None:
        raise InputError(f"{PROMPTS / mode}.jinja does not use instruction")
    return prompt


def format_prompt(instruction: str, input_text: str = "", mode: Mode = "system1") -> str:
    """The user message; "system2" asks for step-by-step reasoning."""
    return shipped_prompt(mode)({"instruction": instruction, "input": input_text})


def item_key(item: Mapping[str, str]) -> str:
    return sha256_text(compact_json([item["instruction"], item.get("input", "")]))


def sft_rows(items: Sequence[Item], prompt: Prompt, model_id: str) -> Iterator[dict[str, Any]]:
    """Rows of contracts.SFT, all in train: one for each item with an output, in order."""
    counts = Counter[str]()
    for item in items:
        if not item["output"].strip():
            continue
        content = compact_json([item["instruction"], item["input"], item["output"]])
        counts[content] += 1  # repeated rows are kept, so each needs a key of its own
        yield {
            "sample_id": sha256_text(f"{content}|{counts[content]}"),
            "split": "train",
            "messages": [
                {"role": "user", "content": prompt(item)},
                {"role": "assistant", "content": item["output"].strip()},
            ],
            "template_name": "instruction",
            "domain": None,
            "model_id": model_id,
            "attempt": 0,
        }
