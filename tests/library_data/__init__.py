"""The invented library network of `data/raw/text2sql/`: its database and its questions.

Both files are written by `python -m tests.library_data --write`; a test compares them with what
this package generates.
"""

from tests.support.workspace import ROOT

FOLDER = ROOT / "data/raw/text2sql"
DATABASE, QUESTIONS = FOLDER / "library.sqlite", FOLDER / "questions.jsonl"
