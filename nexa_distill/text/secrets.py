"""Mask keys and passwords in text for a terminal, a log or a report."""

import re

MASK = "[secret]"
# The value of a flag, a setting or a header that is named as a key.
_NAMED = re.compile(
    r"(?i)(--?(?:[\w-]*-)?(?:key|api-?token|auth-?token|access-?token|secret|password)(?:[ =]+)"
    r"|\bbearer +|\b(?:api|access|secret|private)[-_ ]?key['\"]? *[:=] *)(['\"]?)"
    r"(?!-)[^\s'\",;]{6,}"
)
# Forms of well-known issuers, also short ones: a truncated key is still secret.
_SHAPES = re.compile(
    r"(?<![\w-])(?:"
    r"(?:sk|csk|xai|pplx|glpat|nvapi|xox[abprs])-[\w.-]{8,}"
    r"|(?:gsk|r8|sk_live|sk_test|rk_live|github_pat)_\w{8,}|(?:hf|gh[pousr])_[A-Za-z0-9]{10,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{12,}|AIza[\w-]{12,}|eyJ[\w-]{8,}\.[\w.-]{8,}"
    r")"
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_NAME = 20  # of a variable that mixes digits and lower-case letters, as keys do


def mask_secrets(text: str) -> str:
    """Replace values that are named as a key or have the form of one by `[secret]`."""
    return _SHAPES.sub(MASK, _NAMED.sub(rf"\1\2{MASK}", text))


def is_variable_name(text: str) -> bool:
    """Whether `text` names an environment variable, and is not itself a key."""
    mixed = any(c.isdigit() for c in text) and any(c.islower() for c in text)
    is_key = mask_secrets(text) != text or (mixed and len(text) >= _LONGEST_NAME)
    return _VARIABLE.fullmatch(text) is not None and not is_key
