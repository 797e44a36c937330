"""NVIDIA Data Designer: one LLM text column over a seed table of prompts."""

import data_designer.config as dd  # type: ignore[import-not-found,unused-ignore]
import pandas as pd
from data_designer.interface import DataDesigner  # type: ignore[import-not-found,unused-ignore]

from benchmarks.collector.contender import hand_over, job
from benchmarks.collector.questions import DECODING, MODEL, SYSTEM, read_prompts


def main() -> None:
    given = job()
    asked = pd.DataFrame({"text": list(read_prompts(given.prompts))})
    provider = dd.ModelProvider(name="local", endpoint=given.base_url, api_key="none")
    decoding = dd.ChatCompletionInferenceParams(max_parallel_requests=given.in_flight, **DECODING)
    model = dd.ModelConfig(
        alias="teacher", model=MODEL, provider="local", inference_parameters=decoding,
        skip_health_check=True,
    )  # fmt: skip
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.with_seed_dataset(dd.DataFrameSeedSource(df=asked))
    builder.add_column(
        dd.LLMTextColumnConfig(name="answer", prompt="{{ text }}", system_prompt=SYSTEM, model_alias="teacher")
    )
    designer = DataDesigner(artifact_path=given.folder, model_providers=[provider])
    designer.set_run_config(dd.RunConfig(otel_metrics_port=None))
    rows = designer.create(builder, num_records=len(asked)).load_dataset()
    hand_over(given.out, zip(rows["text"], rows["answer"], strict=True))


if __name__ == "__main__":
    main()
