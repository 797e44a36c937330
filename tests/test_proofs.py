from tests.proofs import page
from tests.support.tiny_model import ROOT


def test_the_page_of_proofs_is_what_the_tests_show() -> None:
    found = (ROOT / "docs/proofs.md").read_text()
    assert found == page(), "run `python -m tests.proofs > docs/proofs.md`"
