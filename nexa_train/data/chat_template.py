"""Fix the date and the variables of a chat template, as a prefix in the template itself.

With the prefix the exported student renders its training text on any day and any server.
"""

import json
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

# The clock of transformers: Llama 3.1 and later, Granite, SmolLM3 and gpt-oss write today's date
# into every prompt.
CLOCK = "strftime_now"
# The format codes of strftime; two-letter codes first, so that "%-d" is not read as "%d".
CODES = [*(f"%-{code}" for code in "dmHIMSj"), *(f"%{code}" for code in "aAwdbBmyYHIpMSfjUWcxXGuVeDFTh")]
# jinja2 drops the line break after END (`trim_blocks`), so the template still begins a line.
BEGIN, END = "{# settings of the run #}", "{# end of the settings of the run #}\n"


def fix_template(tokenizer: Any, variables: Mapping[str, Any], today: date) -> Any:
    """The tokenizer, changed in place to render the same text on every day; `variables`: defaults, as JSON values."""
    template = tokenizer.chat_template
    if isinstance(template, dict) and "default" in template:
        default = _fix_text(template["default"], variables, today)
        tokenizer.chat_template = template | {"default": default}
    elif isinstance(template, str):
        tokenizer.chat_template = _fix_text(template, variables, today)
    return tokenizer


def _fix_text(template: str, variables: Mapping[str, Any], today: date) -> str:
    if template.startswith(BEGIN):  # an exported student's template: the prefix is replaced
        template = template.partition(END)[2]
    prefix = "".join(_default_assignment(name, value) for name, value in variables.items())
    if CLOCK in template:
        prefix = _fixed_clock_macro(template, today) + prefix
    return f"{BEGIN}{prefix}{END}{template}" if prefix else template


def _default_assignment(name: str, value: Any) -> str:
    literal = "none" if value is None else json.dumps(value)  # Jinja reads all other JSON literals
    # A default only: a caller may pass the variable, as Qwen3's `enable_thinking`.
    return f"{{%- if {name} is not defined %}}{{%- set {name} = {literal} %}}{{%- endif %}}"


def _fixed_clock_macro(template: str, today: date) -> str:
    midnight = datetime(today.year, today.month, today.day)
    # Jinja has no dates: the macro replaces the codes that this template uses, one by one.
    steps = [f"|replace({code!r}, {midnight.strftime(code)!r})" for code in CODES if code in template]
    return f"{{%- macro {CLOCK}(format) -%}}{{{{- format{''.join(steps)}|replace('%%', '%') -}}}}{{%- endmacro -%}}"
