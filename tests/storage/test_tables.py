"""Files get to their path whole or not at all, and tables are checked when they are read."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexa_distill.contracts import CHECKS, Table
from nexa_distill.errors import InputError, InputMissing
from nexa_distill.storage.atomic import replace_atomically, write_text
from nexa_distill.storage.tables import read_batches, read_table, table_writer
from tests.support.workspace import ROOT

CHECK = Table("checks", "rules", CHECKS, "one check", "the command", ("sample_id", "check"))


def rows(count: int) -> pa.Table:
    made = [{"sample_id": str(n), "attempt": 0, "check": "c", "ok": True} for n in range(count)]
    return pa.Table.from_pylist(made, schema=CHECKS)


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "t.parquet"
    with table_writer(path, CHECKS) as out:
        out.write(rows(3))
        out.write(rows(0))
    assert read_table(path, CHECK).equals(rows(3))


def test_f06_an_error_while_writing_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with table_writer(path, CHECKS) as out:
        out.write(rows(3))
    before = path.read_bytes()
    with pytest.raises(pa.ArrowInvalid), table_writer(path, CHECKS) as out:
        out.write(rows(9).set_column(3, "ok", pa.array(["no"] * 9)))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_f06_a_full_disk_is_one_line_and_code_74(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: a real write fails in the middle of the table."""
    script = (
        "from pathlib import Path\n"
        "from nexa_distill.console import cli\n"
        "from nexa_distill.contracts import CHECKS\n"
        "from nexa_distill.storage.tables import table_writer\n"
        "from tests.storage.test_tables import rows\n"
        "import hashlib, pyarrow as pa\n"
        "def main():\n"
        "    ids = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(20000)]\n"
        "    table = rows(20000).set_column(0, 'sample_id', pa.array(ids))\n"
        f"    with table_writer(Path({str(tmp_path)!r}, 't.parquet'), CHECKS) as out:\n"
        "        out.write(table)\n"
        "    return 0\n"
        "cli.run(main)\n"
    )
    limited = ["bash", "-c", 'ulimit -f 200; trap "" XFSZ; exec "$@"', "-"]
    done = subprocess.run(
        [*limited, sys.executable, "-c", script],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 74, done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_f03_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    write_text(path, "old")
    script = (
        "import os, signal\nfrom pathlib import Path\n"
        "from nexa_distill.storage.atomic import replace_atomically\n"
        f"with replace_atomically(Path({str(path)!r})) as temporary:\n"
        "    temporary.write_text('new')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    write_text(path, "newer")
    assert path.read_text() == "newer"


def test_two_writers_of_one_path_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    with replace_atomically(path) as temporary:
        temporary.write_text("outer")
        other = "from pathlib import Path\nfrom nexa_distill.storage.atomic import write_text\n"
        other += f"write_text(Path({str(path)!r}), 'other')\n"
        subprocess.run([sys.executable, "-c", other], cwd=ROOT, check=True)
        assert path.read_text() == "other"
    assert path.read_text() == "outer"


def test_a_missing_table_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="`the command` writes"):
        read_table(tmp_path / "t.parquet", CHECK)
    with pytest.raises(InputError, match="found a folder"):
        read_table(tmp_path, CHECK)


def test_f28_a_torn_table_is_refused_at_every_length(tmp_path: Path) -> None:
    pq.write_table(rows(50), tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    for length in range(0, len(whole), 61):
        (tmp_path / "t.parquet").write_bytes(whole[:length])
        with pytest.raises(InputError, match="not a complete Parquet file"):
            read_table(tmp_path / "t.parquet", CHECK)


def test_f28_a_table_with_a_flipped_page_is_refused(tmp_path: Path) -> None:
    pq.write_table(rows(5000), tmp_path / "t.parquet", compression="zstd")
    whole = bytearray((tmp_path / "t.parquet").read_bytes())
    whole[4:200] = bytes(196)
    (tmp_path / "t.parquet").write_bytes(whole)
    with pytest.raises(InputError, match=r"t\.parquet"):
        read_table(tmp_path / "t.parquet", CHECK)


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.concat_tables([rows(3), rows(1)]), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"'sample_id': '0'.*2 times"):
        read_table(tmp_path / "t.parquet", CHECK)


def test_the_row_of_a_null_is_counted_over_all_batches(tmp_path: Path) -> None:
    loose = pa.schema([field.with_nullable(True) for field in CHECKS])
    table = rows(30).cast(loose).to_pylist()
    table[25]["check"] = None
    pq.write_table(pa.Table.from_pylist(table, schema=loose), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="column check is null in row 25"):
        list(read_batches(tmp_path / "t.parquet", CHECK, batch_rows=10))


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    rows(3).to_pandas().to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", CHECK).num_rows == 3
