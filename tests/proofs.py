"""The faults that the project's own proofs are shown to find, as a page: docs/proofs.md.

Run: python -m tests.proofs > docs/proofs.md
"""

from tests.data.test_packed_attention import MUTATIONS
from tests.data.test_preflight import DEFECTS
from tests.training.test_export import BEFORE_THE_SAVE, DAMAGE

INTRODUCTION = """\
# What the proofs find

A proof that shares the fault of what it proves finds nothing. So each is compared with the thing
before the step that it proves, and each has faults that are put in on purpose, one test for each:
the proof has to find it. This page is made from the tests (`python -m tests.proofs`), and a test
compares the two.
"""


def page() -> str:
    """The page, in Markdown."""
    parts = [
        ("The masks of a row", "Before every training, of every row "
         "(`nexa_train/data/row_checks.py`). Compared with"
         " what `apply_chat_template` and inference make of the same messages. Tests: "
         "`tests/data/test_preflight.py`.",
         [[sentence, ", ".join(f"`{check}`" for check in checks)]
          for _, checks, sentence in DEFECTS]),
        ("Packed attention", "Before the first step (`nexa_train/data/packing.py`). Compared with "
         "the model's own attention, one sample at a time. Tests: "
         "`tests/data/test_packed_attention.py`, in float32 and bfloat16.",
         [[mutation.sentence, "a hidden state differs"] for mutation in MUTATIONS.values()]),
        ("The exported folder", "Before it is sealed (`nexa_train/training/export.py`). It is "
         "loaded again and compared with the model in memory, weight by weight. Tests: "
         "`tests/training/test_export.py`.",
         [[sentence, found] for _, found, sentence in DAMAGE]),
        ("From the last step to the export", "In the same proof: the loss of every validation row "
         "and greedy answers, as the model was trained, before any merge, cast or save "
         "(`nexa_train/training/as_trained.py`). Tests: `tests/training/test_export.py`.",
         [[sentence, "a loss or an answer differs"] for _, _, sentence in BEFORE_THE_SAVE]),
    ]  # fmt: skip
    lines = [INTRODUCTION]
    for title, about, rows in parts:
        cells = [["fault put in", "found as"], ["---", "---"], *rows]
        lines += [f"## {title}\n", about, "", *(f"| {' | '.join(row)} |" for row in cells), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
