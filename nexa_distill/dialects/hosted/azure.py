"""Azure OpenAI: one deployment per address, the version in the query, the key in its own header.

Source: https://learn.microsoft.com/azure/ai-services/openai/reference. `base_url` is
https://NAME.openai.azure.com/openai/deployments/DEPLOYMENT; `query: {api-version: ...}`, or a
query in `base_url`, overrides the version here.
"""

from nexa_distill.dialects.dialect import Dialect

DIALECT = Dialect(
    "azure",
    "Azure OpenAI deployments",
    key_header="api-key",
    key_prefix="",
    query={"api-version": "2024-10-21"},
    hosts=("openai.azure.com", "cognitiveservices.azure.com"),
    error_statuses={"content_filter": 400, "deploymentnotfound": 404, "nocapacity": 429},
    refusals=(r"api-key header|missing api-key|invalid subscription key",),
)
