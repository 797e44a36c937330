"""What the collector is given: odd tables, changed tables, secrets, a budget.

Faults F9, F28, F29 and F37. Not covered: a single row group of 1 GB.
"""

import http.server
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexa_distill import collect_teacher
from nexa_distill.contracts import INPUTS
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.settings.pipeline import DistillConfig
from tests.support.workspace import ROOT, Workspace, workspace
from tests.teacher.faults import (
    COLLECT,
    Run,
    answers,
    ask,
    collect,
    journal,
    outcomes,
    place,
    prompts,
    provide,
    put,
    reasons,
    survived,
    texts,
    uncertain,
    wait_for,
)
from tests.teacher.ledger_teacher import ledger_teacher

# ---- F9: a row that is far too large


def _with_a_huge_row() -> list[dict[str, Any]]:
    rows = prompts(6)
    rows[3]["user_prompt"] = "x" * (200 * 2**20)
    return rows


@pytest.mark.slow
def test_f09_a_prompt_of_200_mb_is_set_aside_and_the_others_are_answered(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, _with_a_huge_row(), memory=3 * 2**30)
        assert reasons(made) == {"s0003": "prompt_too_large"}
        assert sorted(texts(made)) == ["s0000", "s0001", "s0002", "s0004", "s0005"]
        ask(made, prompts(6))
        survived(made, teacher)


def test_f09_a_system_prompt_that_is_too_large_is_not_sent_either(tmp_path: Path) -> None:
    rows = prompts(2)
    rows[1]["system_prompt"] = "x" * (9 * 2**20)
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, rows)
        assert reasons(made) == {"s0001": "prompt_too_large"}
        assert sum(teacher.billed().values()) == 1


@pytest.mark.slow
def test_f09_without_memory_for_a_row_the_old_table_stays(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, prompts(6))
        outputs = place(made, "collected_dataset")
        before = {path: path.read_bytes() for path in outputs.parent.iterdir()}
        put(made, _with_a_huge_row())
        run = Run(made, memory=300 * 2**20)
        said = run.end(None)
        assert (run.process.exitcode or 0) > 0, said
        assert {path: path.read_bytes() for path in outputs.parent.iterdir()} == before
        put(made, prompts(6))
        survived(made, teacher)


# ---- F28: a table that is not what it should be

Change = Callable[[pa.Table, str], pa.Table]


def _without(table: pa.Table, name: str) -> pa.Table:
    return table.drop_columns(name)


def _null(table: pa.Table, name: str) -> pa.Table:
    values = table[name].to_pylist()
    values[1] = None
    return _with_column(table, name, pa.array(values, table.schema.field(name).type))


def _of_another_type(table: pa.Table, name: str) -> pa.Table:
    return _with_column(table, name, pa.array([[True]] * table.num_rows))


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


REQUIRED = [field.name for field in INPUTS if not field.nullable]
WRONG: list[tuple[Change, str]] = [
    (_without, "column {} is missing"),
    (_null, "column {} is null in row 1 "),
    (_of_another_type, "column {} is list"),
]


def _without_teacher(folder: Path) -> DistillConfig:
    return workspace(folder, collection={"max_attempts": 1}).load()


@pytest.mark.parametrize("column", REQUIRED)
@pytest.mark.parametrize(("change", "expected"), WRONG)
def test_f28_a_wrong_column_is_named_before_any_request(
    tmp_path: Path, column: str, change: Change, expected: str
) -> None:
    """There is no teacher: a request would be refused as ProviderUnusable."""
    path = tmp_path / "bad.parquet"
    pq.write_table(change(pa.Table.from_pylist(prompts(3), schema=INPUTS), column), path)
    with pytest.raises(InputError) as refused:
        collect_teacher.run(_without_teacher(tmp_path), path)
    assert str(path) in str(refused.value)
    assert expected.format(column) in str(refused.value)


@pytest.mark.parametrize("column", [f.name for f in INPUTS if f.nullable])
def test_f28_a_wrong_type_in_a_column_that_may_be_null_is_named_too(tmp_path: Path, column: str) -> None:
    path = tmp_path / "bad.parquet"
    table = pa.Table.from_pylist(prompts(3), schema=INPUTS)
    pq.write_table(_of_another_type(table, column), path)
    with pytest.raises(InputError, match=f"column {column} is list"):
        collect_teacher.run(_without_teacher(tmp_path), path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda t: t.rename_columns({"user_prompt": "userprompt"}),
            'column user_prompt is missing (did you mean "userprompt"?)',
        ),
        (lambda t: _null(t, "user_prompt"), "column user_prompt is null in row 1 (0-based)"),
        (lambda t: t.slice(0, 0), "holds no rows"),
    ],
)
def test_f28_a_bad_table_is_one_line_and_code_65(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], expected: str
) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        path = tmp_path / "prompts.parquet"
        pq.write_table(change(pa.Table.from_pylist(prompts(3), schema=INPUTS)), path)
        said = collect(made, code=65)
        assert said.count("\n") == 1
        assert expected in said
        assert str(path) in said
        assert not teacher.sends()
        ask(made, prompts(3))
        survived(made, teacher)


def test_f28_a_table_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = put(workspace(tmp_path), prompts(3))
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"prompts\.parquet: not a complete Parquet file"):
            collect_teacher.run(_without_teacher(tmp_path), path)


def test_f28_a_page_of_garbage_is_refused_before_any_request(tmp_path: Path) -> None:
    """In a column that is only copied, too: what is found after the spending is found too late."""
    path = put(workspace(tmp_path), prompts(500))
    column = pq.ParquetFile(path).metadata.row_group(0).column(INPUTS.names.index("cluster_id"))
    whole, start = bytearray(path.read_bytes()), column.dictionary_page_offset
    whole[start : start + 200] = bytes(200)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"prompts\.parquet"):
        collect_teacher.run(_without_teacher(tmp_path), path)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: path.mkdir(), InputError),
        (lambda path: path.symlink_to("nowhere.parquet"), InputMissing),
        (lambda path: os.mkfifo(path), InputError),
        (lambda path: path.symlink_to("/dev/null"), InputError),
        (lambda path: path.write_text("sample_id,user_prompt\n1,What?\n"), InputError),
    ],
    ids=["folder", "dangling-link", "pipe", "device", "text"],
)
def test_f28_what_is_no_parquet_file_is_refused(
    tmp_path: Path, make: Callable[[Path], object], error: type[Exception]
) -> None:
    path = tmp_path / "prompts.parquet"
    make(path)
    with pytest.raises(error, match=r"prompts\.parquet"):
        collect_teacher.run(_without_teacher(tmp_path), path)


def test_f28_a_link_to_a_table_is_as_good_as_the_table(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        path = put(made, prompts(3))
        path.rename(tmp_path / "elsewhere.parquet")
        path.symlink_to("elsewhere.parquet")
        collect(made)
        survived(made, teacher)


# ---- F29: another table than last time


def test_f29_only_new_and_edited_rows_are_asked(tmp_path: Path) -> None:
    rows = prompts(20)
    edited = rows[7] | {"user_prompt": "Another question?"}
    steps = [
        ("shuffled", rows[::-1], 0),
        ("removed", rows[5:15], 0),
        ("appended", prompts(23), 3),
        ("edited", [*rows[:7], edited, *rows[8:]], 1),
        ("edited and back", rows, 0),
        ("all of it", [prompts(25)[24], edited, *rows[9:], *rows[:5]], 1),
    ]
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        ask(made, rows)
        for name, table, new in steps:
            before = len(teacher.sends())
            ask(made, table)
            assert len(teacher.sends()) - before == new, name
            assert [row["sample_id"] for row in answers(made)] == [r["sample_id"] for r in table]
        survived(made, teacher)


# ---- F37: the key

KEY = "sk-canary-7f3a91"
DEBUG = {"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1", "PYTHONVERBOSE": "0"}


@pytest.mark.parametrize("fault", ["none", "reset_mid", "status:401"])
def test_f37_the_key_is_sent_and_found_nowhere(tmp_path: Path, fault: str) -> None:
    """Whatever goes wrong, and with all that Python says when it is debugged."""
    with ledger_teacher(tmp_path, delay=0.2, fault=fault, share=0.5) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        flags = ("--api-key-env", "CANARY_KEY", "--src", put(made, prompts(20)))
        process = subprocess.Popen(
            made.command(COLLECT, *flags), cwd=ROOT, env=os.environ | DEBUG | {"CANARY_KEY": KEY},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        wait_for(teacher.sends)
        shown = _command_lines()
        said, _ = process.communicate(timeout=30)
        assert process.returncode == (69 if "401" in fault else 0), said
        assert all(send["authorization_present"] for send in teacher.sends())
    assert COLLECT in shown
    assert KEY not in shown
    assert KEY not in said
    assert not _holding(tmp_path, KEY)


def _command_lines() -> str:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def _holding(folder: Path, text: str) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if text.encode() in path.read_bytes()]


@contextmanager
def _echo(status: int) -> Iterator[str]:
    """The address of an API that repeats the key in what it says, as some do."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            said = f"Incorrect API key: {self.headers['Authorization']}"
            message = {"role": "assistant", "content": said}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            body = json.dumps({"error": {"message": said}} if status != 200 else {"choices": choices})
            self.send_response(status, said)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Location", f"/login?{said.replace(' ', '+')}")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (302, 69), (400, 69), (401, 69), (429, 69), (500, 69)])
def test_f37_a_key_that_the_api_repeats_is_not_kept(tmp_path: Path, status: int, code: int) -> None:
    with _echo(status) as base_url:
        made = workspace(tmp_path, base_url, collection={"max_attempts": 2})
        put(made, prompts(3))
        run = Run(made, "--api-key-env", "CANARY_KEY", before=_set_the_key)
        if status == 429:
            wait_for(lambda: (place(made, "journal") / "teacher.sqlite-wal").exists())
            run.process.join(1)
            run.kill()
            said = run.said
        else:
            said = run.end(code)
    assert KEY not in said
    assert not _holding(tmp_path, KEY)
    assert outcomes(made).keys() & {"answered", "rejected"}


def _set_the_key() -> None:
    os.environ["CANARY_KEY"] = KEY


# ---- the budget


PRICES = {"ledger-teacher": {"prompt": 100.0, "completion": 1000.0}}
BILL = {"max_usd": 0.06, "max_tokens": 150, "max_requests": 1}  # of one answer


@pytest.mark.parametrize(("kind", "limit"), [("max_usd", 3.0), ("max_tokens", 6000), ("max_requests", 25)])
def test_a_budget_is_never_exceeded_whatever_dies(tmp_path: Path, kind: str, limit: float) -> None:
    """What may have been billed counts as the most that it can have cost."""
    with ledger_teacher(tmp_path, delay=0.03) as teacher:
        made = workspace(tmp_path, teacher.base_url, collection={"concurrency": 4}, budget={kind: limit})
        provide(made, prices=PRICES)
        ask(made, prompts(60), failpoint="after_recv:6", code=-9)
        for _ in range(2):
            said = collect(made, code=77)
            assert f"budget.{kind} is {limit:g}" in said
            assert BILL[kind] * teacher.billed().total() <= limit
        spent, most = _spent(made, kind)
        assert spent <= limit < spent + most, "it stopped too early"
        assert not place(made, "collected_dataset").exists()
        made.change(budget={kind: None})
        collect(made)
        survived(made, teacher, uncertain=set(uncertain(made).values()))


def _spent(made: Workspace, kind: str) -> tuple[float, float]:
    """By the ledger, and the most that one more request can cost."""
    column = {"max_usd": "most_usd", "max_tokens": "most_tokens", "max_requests": "1"}[kind]
    with journal(made) as db:
        (most,) = db.execute(f"SELECT max({column}) FROM attempts").fetchone()
    ended = outcomes(made)
    return BILL[kind] * ended["answered"] + most * ended["uncertain"], most


def test_a_budget_in_dollars_needs_a_price(tmp_path: Path) -> None:
    with ledger_teacher(tmp_path) as teacher:
        made = workspace(tmp_path, teacher.base_url)
        said = ask(made, prompts(3), "--max-usd", "1", code=65)
        assert "no price of ledger-teacher" in said
        assert not teacher.sends()
