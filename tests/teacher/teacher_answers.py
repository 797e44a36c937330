"""What the ledger teacher says: an answer made from the request alone, and odd bodies of a 200.

Source of the format: OpenAI's chat completions; `reasoning_content` as vLLM and SGLang add it.
"""

import json
import random
import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

Json = dict[str, Any]

NOTHING: Mapping[str, str] = MappingProxyType({})
SYLLABLES = [first + last for first in "bdfgklmnprst" for last in "aeiou"]
CAPABILITIES = ("models", "json_schema", "logprobs", "usage")
# Stands before and after the answer of the fault `odd_text`: byte order mark, lone surrogate, NUL,
# line and paragraph separators, a character of 4 bytes, right to left, CRLF.
ODD_TEXT = "\ufeff \ud800 \x00 \u2028\u2029 \U0001f9ea \u202e\u05d0\u05d1 \r\n"


def answer_text(prompt: str, words: int = 110) -> str:
    """Made-up words in sentences that pass the shipped rules; a function of the prompt alone."""
    chance = random.Random(prompt)
    made = ["".join(chance.choices(SYLLABLES, k=3)) for _ in range(words)]
    sentences = [" ".join(made[n : n + 11]) for n in range(0, words, 11)]
    return "We will measure this. " + " ".join(f"{text.capitalize()}." for text in sentences)


def completion(body: Json, key: str, capabilities: Collection[str], says: Mapping[str, str] = NOTHING) -> Json:
    """One choice of 50 tokens for each of `n`; nothing in it depends on time or order."""
    texts = [_scripted(body, says) or _text(body, index) for index in range(choice_count(body))]
    choices: list[Json] = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for index, text in enumerate(texts)
    ]
    if body.get("logprobs"):
        for choice, text in zip(choices, texts, strict=True):
            choice["logprobs"] = logprobs(text, body.get("top_logprobs") or 0)
    answer = {
        "id": f"chatcmpl-{key[:16]}", "object": "chat.completion", "created": 1_700_000_000,
        "model": body["model"], "system_fingerprint": "fp_1", "choices": choices,
    }  # fmt: skip
    return answer | {"usage": usage(len(choices))} if "usage" in capabilities else answer


def usage(choices: int) -> Json:
    spent = 50 * choices
    return {"prompt_tokens": 100, "completion_tokens": spent, "total_tokens": 100 + spent}


def choice_count(body: Json) -> int:
    return int(body.get("n") or 1)


def _scripted(body: Json, says: Mapping[str, str]) -> str | None:
    """What it shall say when all that stands before it occurs in the model's name and messages."""
    asked = "\n".join([body["model"], *(str(message["content"]) for message in body["messages"])])
    fits = (said for wanted, said in says.items() if all(w in asked for w in wanted.split("|")))
    return next(fits, None)


def _text(body: Json, index: int) -> str:
    prompt = body["messages"][-1]["content"]
    prompt = prompt if isinstance(prompt, str) else json.dumps(prompt)
    prompt += f"#{index}" if index else ""  # each further choice is another answer
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return json.dumps(sample(wanted["json_schema"].get("schema", {}), random.Random(prompt)))
    if wanted.get("type") == "json_object":
        return json.dumps({"answer": answer_text(prompt)})
    return answer_text(prompt)


def sample(schema: Json, chance: random.Random) -> Any:
    """A value that satisfies a plain JSON schema (no $ref, anyOf, pattern or length limits)."""
    if "enum" in schema:
        return chance.choice(schema["enum"])
    low = schema.get("minimum", 0)
    high = schema.get("maximum", low + 100)
    match schema.get("type", "object"):
        case "object":
            return {name: sample(part, chance) for name, part in schema["properties"].items()}
        case "array":
            items = schema.get("items", {"type": "string"})
            return [sample(items, chance) for _ in range(schema.get("minItems", 2))]
        case "integer":
            return chance.randint(low, high)
        case "number":
            return chance.uniform(low, high)
        case "boolean":
            return chance.random() < 0.5
        case _:
            return answer_text(str(chance.random()), words=11)


def logprobs(text: str, top: int) -> Json:
    """A word with the space before it is a token; the tokens joined are the text."""
    content = []
    for n, word in enumerate(re.findall(r"\s*\S+", text)):
        token = {"token": word, "logprob": -0.01 - n % 7 / 10, "bytes": list(word.encode())}
        others = [token | {"logprob": token["logprob"] - rank} for rank in range(top)]
        content.append(token | {"top_logprobs": others})
    return {"content": content, "refusal": None}


def unsupported(body: Json, capabilities: Collection[str]) -> str | None:
    """The first capability that the request needs and the server lacks."""
    wanted = body.get("response_format") or {}
    needs = {"json_schema": wanted.get("type") == "json_schema", "logprobs": body.get("logprobs")}
    return next((name for name, need in needs.items() if need and name not in capabilities), None)


def encode(body: Json | str) -> bytes:
    """UTF-8 as it is; what UTF-8 cannot carry, a lone surrogate, becomes its JSON escape."""
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


def _said(answer: Json, finish: str = "stop", **message: Any) -> Json:
    """The same answer with other fields in each message; a callable is given the text."""
    choices = []
    for choice in answer["choices"]:
        text = choice["message"]["content"]
        new = {name: value(text) if callable(value) else value for name, value in message.items()}
        choices.append(choice | {"message": choice["message"] | new, "finish_reason": finish})
    return answer | {"choices": choices}


def _tool_calls(text: str) -> list[Json]:
    function = {"name": "look_up", "arguments": json.dumps({"query": text[:20]})}
    return [{"id": "call_1", "type": "function", "function": function}]


ERROR = {"error": {"message": "scripted error", "type": "server_error", "code": 502}}
OTHER_MODEL = {"model": "another", "system_fingerprint": "fp_2"}
NANS = dict.fromkeys(usage(1), float("nan"))

ODD_BODIES: dict[str, Callable[[Json], Json | str]] = {
    "html": lambda _: "<html>busy</html>",
    "empty": lambda _: "",
    "no_object": lambda _: "{}",
    "empty_choices": lambda answer: answer | {"choices": []},
    "no_choices": lambda answer: answer | {"choices": None},
    "error_object": lambda _: ERROR,
    "no_usage": lambda answer: {name: answer[name] for name in answer if name != "usage"},
    "nan": lambda answer: answer | {"usage": NANS},
    "parts": lambda answer: _said(answer, content=lambda text: [{"type": "text", "text": text}]),
    "length": lambda answer: _said(answer, "length", content=lambda text: text[: len(text) // 2]),
    "content_filter": lambda answer: _said(answer, "content_filter", content=""),
    "refusal": lambda answer: _said(answer, content=None, refusal="I cannot help with that."),
    "reasoning": lambda answer: _said(answer, content=None, reasoning_content=str.upper),
    "thinking": lambda answer: _said(answer, reasoning_content=str.upper),
    "tool_calls": lambda answer: _said(answer, "tool_calls", content=None, tool_calls=_tool_calls),
    "odd_text": lambda answer: _said(answer, content=lambda text: f"{ODD_TEXT}{text}{ODD_TEXT}"),
    "other_model": lambda answer: answer | OTHER_MODEL,
}
