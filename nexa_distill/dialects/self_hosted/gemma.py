"""Models whose chat template has no system role: Gemma 1 and 2, Mistral 7B Instruct v0.1.

Source: the `raise_exception('System role not supported')` of their chat templates.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "gemma",
    "models without a system role, at any server",
    system_role="user",
    refusals=(
        r"system role (?:is )?not supported|developer instruction is not enabled",
        r"(?:not|n't) support (?:the )?\W?(?:system|developer)\W? (?:role|message|prompt|instr)",
        r"\b(?:system|developer)\W (?:role )?(?:is )?(?:not|un)[ -]?(?:supported|allowed|enabled)",
        r"only (?:supports? )?\W?user\W? and \W?(?:assistant|model)\W? roles",
        r"roles must alternate user/assistant",
    ),
)
