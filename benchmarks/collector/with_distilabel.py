"""distilabel: one TextGeneration step; a batch of `in_flight` is what it sends at once."""

from distilabel.models import OpenAILLM  # type: ignore[import-not-found,unused-ignore]
from distilabel.pipeline import Pipeline  # type: ignore[import-not-found,unused-ignore]
from distilabel.steps import LoadDataFromDicts  # type: ignore[import-not-found,unused-ignore]
from distilabel.steps.tasks import TextGeneration  # type: ignore[import-not-found,unused-ignore]

from benchmarks.collector.contender import hand_over, job
from benchmarks.collector.questions import DECODING, MODEL, SYSTEM, read_prompts


def main() -> None:
    given = job()
    asked = [{"instruction": text} for text in read_prompts(given.prompts)]
    decoding = {
        "max_new_tokens": DECODING["max_tokens"], "temperature": DECODING["temperature"]
    }  # fmt: skip
    model = OpenAILLM(model=MODEL, base_url=given.base_url, api_key="none", generation_kwargs=decoding)
    with Pipeline(name="collector", cache_dir=given.folder) as pipeline:
        source = LoadDataFromDicts(data=asked, batch_size=given.in_flight)
        step = TextGeneration(llm=model, system_prompt=SYSTEM, input_batch_size=given.in_flight)
        source >> step
    rows = pipeline.run(use_cache=False)["default"]["train"]
    hand_over(given.out, zip(rows["instruction"], rows["generation"], strict=True))


if __name__ == "__main__":
    main()
