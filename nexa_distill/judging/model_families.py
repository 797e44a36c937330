"""Families of models, by their names: a judge is lenient with its own kind.

Source: Panickssery et al. 2024, "LLM Evaluators Recognize and Favor Their Own Generations". Not
covered: a name that says nothing of its family, or a model trained on another's answers.
"""

import re
from collections.abc import Iterable

# What stands at the beginning of a part of the name, lower case.
FAMILIES = {
    "OpenAI": r"gpt|chatgpt|o[134](?![0-9a-z])|codex",
    "Qwen": r"qwen|qwq",
    "Llama": r"llama|codellama|vicuna",
    "Mistral": r"mistral|mixtral|ministral|magistral|devstral|codestral|pixtral",
    "Gemini": r"gemma|gemini",
    "Claude": r"claude",
    "DeepSeek": r"deepseek",
    "Phi": r"phi(?![a-z])",
    "SmolLM": r"smollm|smolvlm",
    "Granite": r"granite",
    "Command": r"command|c4ai|aya(?![a-z])",
    "OLMo": r"olmo",
    "GLM": r"glm|chatglm",
    "Kimi": r"kimi|moonshot",
    "Grok": r"grok",
}


def families(model: str) -> set[str]:
    """The families that a name speaks of; a distilled model may speak of two."""
    name = model.lower()
    return {
        family
        for family, pattern in FAMILIES.items()
        if re.search(rf"(?<![a-z0-9])(?:{pattern})", name)
    }


def family_warnings(judges: Iterable[str], teachers: Iterable[str]) -> list[str]:
    """One line for each judge that is of the family of a model whose answers it judges."""
    found = []
    for judge in judges:
        for teacher in sorted(set(teachers)):
            shared = " and ".join(sorted(families(judge) & families(teacher)))
            if shared or judge == teacher:
                kind = f"both are of the {shared} family" if shared else "it is the same model"
                found.append(
                    f"{judge} judges answers of {teacher}, and {kind}: expect scores that are too "
                    "high, and compare them with people's (judge calibrate)"
                )
    return found
