"""The contract is closed and its document is generated."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_distill.contracts import REASONS, canonical_input, check_reasons, sample_id
from tests import warm
from tests.support.workspace import ROOT


def test_the_document_is_what_the_code_says() -> None:
    command = [warm.python(), "-m", "nexa_distill.contracts"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    kept = (ROOT / "docs/data-contracts.md").read_text(encoding="utf-8")
    assert kept == made, "run: python -m nexa_distill.contracts > docs/data-contracts.md"


def test_a_reason_outside_the_list_cannot_be_written() -> None:
    check_reasons(list(REASONS))
    with pytest.raises(ValueError, match="bad_vibes"):
        check_reasons(["too_short", "bad_vibes"])


@given(st.text(), st.text(), st.none() | st.text())
def test_f25_identity_is_defined_for_any_text_and_ignores_nulls_and_order(
    task: str, prompt: str, domain: str | None
) -> None:
    row = {"user_prompt": prompt, "template_name": "math", "domain": domain}
    backwards = dict(reversed(row.items())) | {"context": None, "source_row": 3}
    assert canonical_input(row) == canonical_input(backwards)
    assert len(sample_id(task, canonical_input(row))) == 64


def test_the_key_changes_with_the_task_and_with_the_content() -> None:
    rows = [{"user_prompt": "a"}, {"user_prompt": "b"}, {"user_prompt": "a", "domain": "x"}]
    keys = {sample_id(task, canonical_input(row)) for row in rows for task in ("t", "u")}
    assert len(keys) == 6
