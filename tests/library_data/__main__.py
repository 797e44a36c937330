"""Write the library's database and questions: python -m tests.library_data --write."""

import json
import sys
from collections import Counter

from tests.library_data import DATABASE, FOLDER, QUESTIONS, database, questions
from tests.library_data.skeleton import query_skeleton


def main() -> None:
    rows = questions.write_questions()
    if "--write" in sys.argv[1:]:
        FOLDER.mkdir(parents=True, exist_ok=True)
        database.write_database(DATABASE)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        QUESTIONS.write_text("".join(lines), encoding="utf-8")
    counts = Counter((row["split"], row["domain"]) for row in rows)
    skeletons = len({query_skeleton(row["gold_sql"]) for row in rows})
    print(f"{len(rows)} questions, {skeletons} forms of query: {dict(counts)}")


if __name__ == "__main__":
    main()
