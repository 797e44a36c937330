"""A chat template without hidden inputs: the date and the template's own variables are settings.

What a template renders follows from the messages and from two more things: `strftime_now`, the
clock that transformers gives to it (Llama 3.1 and later, Granite, SmolLM3 and gpt-oss write today's
date into every prompt), and variables that a caller may pass, such as Qwen3's `enable_thinking`.
Both are written into the template itself, as a prefix in Jinja. Whoever loads the exported student
then renders the text that it was trained on, on any day and any server. A variable that a caller
passes still wins.
"""

import json
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

CLOCK = "strftime_now"
# The format codes of strftime; those of two letters first, so that "%-d" is not read as "%d".
CODES = [
    *(f"%-{code}" for code in "dmHIMSj"),
    *(f"%{code}" for code in "aAwdbBmyYHIpMSfjUWcxXGuVeDFTh"),
]
# jinja2 drops the line break after the second comment (`trim_blocks`), so that what follows still
# begins a line.
BEGIN, END = "{# settings of the run #}", "{# end of the settings of the run #}\n"


def fix_template(tokenizer: Any, variables: Mapping[str, Any], today: date) -> Any:
    """The tokenizer, whose default template now renders the same text on every day.

    `variables`: defaults of names that the template reads, as JSON values. The settings of an
    earlier run, which an exported student's template begins with, are replaced.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict) and "default" in template:
        tokenizer.chat_template = template | {
            "default": _fixed(template["default"], variables, today)
        }
    elif isinstance(template, str):
        tokenizer.chat_template = _fixed(template, variables, today)
    return tokenizer


def _fixed(template: str, variables: Mapping[str, Any], today: date) -> str:
    template = _as_shipped(template)
    prefix = "".join(_default(name, value) for name, value in variables.items())
    if CLOCK in template:
        prefix = _stopped_clock(template, today) + prefix
    return f"{BEGIN}{prefix}{END}{template}" if prefix else template


def _as_shipped(template: str) -> str:
    return template.partition(END)[2] if template.startswith(BEGIN) else template


def _default(name: str, value: Any) -> str:
    literal = "none" if value is None else json.dumps(value)  # else Jinja's literals are JSON's
    return f"{{%- if {name} is not defined %}}{{%- set {name} = {literal} %}}{{%- endif %}}"


def _stopped_clock(template: str, today: date) -> str:
    """A macro of the clock's name: midnight of `today`, for the codes that `template` has."""
    midnight = datetime(today.year, today.month, today.day)
    steps = [
        f"|replace({code!r}, {midnight.strftime(code)!r})" for code in CODES if code in template
    ]
    return (
        f"{{%- macro {CLOCK}(format) -%}}{{{{- format{''.join(steps)}|replace('%%', '%') -}}}}"
        "{%- endmacro -%}"
    )
