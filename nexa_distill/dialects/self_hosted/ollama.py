"""Ollama's OpenAI-compatible endpoint. Source: docs/openai.md of ollama; `done_reason` in
docs/api.md. It loads a model at its first request, which waits meanwhile.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "ollama",
    "Ollama (127.0.0.1:11434/v1)",
    finish_reasons={"unload": "error", "load": "error"},
    loading=(r"llm server loading model|server not responding|timed out waiting for llama runner",),
    reasoning_fields=("thinking",),
)
