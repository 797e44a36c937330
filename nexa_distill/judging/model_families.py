"""Model family by name, to warn about self-preference bias of judges.

Source: Panickssery et al. 2024, "LLM Evaluators Recognize and Favor Their Own Generations". Not
covered: a name that does not contain its family, or a model trained on another's answers.
"""

import re
from collections.abc import Iterable

# Patterns for the beginning of a part of the lower-case name.
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


def find_families(model: str) -> set[str]:
    """The families that occur in a name; a distilled model may name two."""
    name = model.lower()
    return {family for family, pattern in FAMILIES.items() if re.search(rf"(?<![a-z0-9])(?:{pattern})", name)}


def family_warnings(judges: Iterable[str], teachers: Iterable[str]) -> list[str]:
    warnings = []
    for judge in judges:
        for teacher in sorted(set(teachers)):
            shared = " and ".join(sorted(find_families(judge) & find_families(teacher)))
            if shared or judge == teacher:
                kind = f"both are of the {shared} family" if shared else "it is the same model"
                warnings.append(
                    f"{judge} judges answers of {teacher}, and {kind}: expect scores that are too "
                    "high, and compare them with human decisions (judge calibrate)"
                )
    return warnings
