"""Write the table of docs/baseline.md; with a check's name, print what it gets wrong."""

import sys

from tests import rule_corpus

if sys.argv[1:]:
    for name in sys.argv[1:]:
        figures = rule_corpus.measure(name)
        for title, texts in (("missed", figures.missed), ("false alarm", figures.false_alarms)):
            for text in texts:
                print(f"{name}: {title}: {text!r}")
else:
    rule_corpus.write_table()
