"""A judge whose every verdict is unreadable is a wrong setting: it is stopped, and said once."""

import json
from pathlib import Path
from typing import Any

import pytest

from nexa_distill import judge
from nexa_distill.errors import ProviderUnusable
from nexa_distill.storage.manifests import StageRun
from tests.support.answers import answer, write_answers
from tests.support.answers import collect as collected
from tests.support.workspace import Workspace
from tests.teacher.dialect_server import Asked, Response, completion, refusal, serving, teacher_workspace

VERDICT = '{"reason": "fine", "score": 0.9%s}'


def verdict(asked: Asked) -> str:
    safety = "safety" in asked.body["messages"][0]["content"]
    return VERDICT % (', "safety": "safe"' if safety else "")


def made_of(folder: Path, base_url: str, count: int, **extra: Any) -> Workspace:
    judges = [{"provider": "vllm", "model": "mock-1", "extra_body": extra}]
    made = teacher_workspace(folder, base_url, judging={"judges": judges}, collection={"concurrency": 2})
    rows = [answer(n) for n in range(count)]
    config = made.load()
    first = collected(config, rows)
    path = write_answers(config.storage.path_of("rule_filtered"), rows)
    StageRun("rules", config.storage, inputs=[first], settings={}).seal_output(path, rows_in=count, rejected=0)
    return made


def test_d25_a_judge_that_fences_every_verdict_is_stopped_early(tmp_path: Path) -> None:
    def fenced(asked: Asked) -> Response:
        return completion(f"```json\n{verdict(asked)}\n```")

    with serving(fenced) as server:
        made = made_of(tmp_path, server.base_url, 12)
        with pytest.raises(ProviderUnusable) as stopped:
            judge.run(made.load())
        assert 8 <= len(server.asked) < 40  # of 72
    said = str(stopped.value)
    assert "none of the first 8 answers of mock-1 can be read" in said
    assert "extra_body: {response_format: {type: json_object}}" in said


def test_d25_objects_of_the_wrong_shape_stop_it_at_the_end(tmp_path: Path) -> None:
    with serving(lambda _: completion('{"rating": 5}')) as server:
        made = made_of(tmp_path, server.base_url, 1)
        with pytest.raises(ProviderUnusable, match=r"verdicts can be read; the last: .*rating"):
            judge.run(made.load())


def test_d25_one_verdict_in_nine_is_enough_to_go_on(tmp_path: Path) -> None:
    def answers(asked: Asked) -> Response:
        return completion("8/10" if asked.number % 9 else verdict(asked))

    with serving(answers) as server:
        made = made_of(tmp_path, server.base_url, 6)
        assert judge.run(made.load()) is not None


def test_d24_a_judge_without_json_schemas_is_asked_for_a_json_object(tmp_path: Path) -> None:
    def deepseek(asked: Asked) -> Response:
        kind = (asked.body.get("response_format") or {}).get("type")
        if kind == "json_schema":
            return refusal(400, "This response_format type is unavailable now")
        return completion(verdict(asked))

    with serving(deepseek) as server:
        made = made_of(tmp_path, server.base_url, 2)
        with pytest.raises(ProviderUnusable) as stopped:
            judge.run(made.load())
        assert "knows no JSON schemas, give it extra_body" in str(stopped.value)
        refused = len(server.asked)
        assert refused <= 10
        judges = [{"provider": "vllm", "model": "mock-1",
                   "extra_body": {"response_format": {"type": "json_object"}}}]  # fmt: skip
        made.change(judging={"judges": judges})
        assert judge.run(made.load()) is not None
        assert json.dumps(server.asked[-1].body["response_format"]) == '{"type": "json_object"}'
