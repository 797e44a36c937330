"""Connections: proxies, keys, certificates, and servers that close what was kept open."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nexa_distill import collect_teacher
from nexa_distill.collection.requests.connections import choose_proxy, is_this_machine
from nexa_distill.collection.requests.endpoint import Endpoint
from nexa_distill.collection.requests.transport import Transport
from nexa_distill.errors import ProviderUnusable
from tests.support.workspace import ROOT
from tests.teacher.dialect_server import Asked, Response, collect, completion, refusal, serving, teacher_workspace
from tests.teacher.faults import answers, prompts, put

# ---- 19: connections that were closed meanwhile


def test_d19_a_server_that_closes_idle_connections_costs_no_request(tmp_path: Path) -> None:
    with serving(lambda _: completion(), idle_seconds=1.0) as server:
        made = teacher_workspace(
            tmp_path, server.base_url, provider={"requests_per_minute": 60.0},
            collection={"concurrency": 2},
        )  # fmt: skip
        summary = collect(made, 5)
        assert len(server.asked) == 5
    assert summary is not None
    assert (summary.answered, summary.requests, summary.uncertain) == (5, 5, [])


def test_d19_a_server_that_closes_after_each_answer_is_asked_once_each(tmp_path: Path) -> None:
    """The budget is just enough for what is billed: one send counted twice would stop the run."""
    with serving(lambda _: Response(200, completion().body, closes=True)) as server:
        made = teacher_workspace(
            tmp_path, server.base_url, collection={"concurrency": 4, "max_tokens": 32},
            budget={"max_usd": 100 * 0.00025 + 4 * 0.003},
        )  # fmt: skip
        summary = collect(made, 100)
        assert len(server.asked) == 100
    assert summary is not None
    assert (summary.requests, summary.uncertain) == (100, [])
    assert summary.usd == pytest.approx(100 * 0.00025)


def test_d19_a_reused_connection_lost_at_once_is_sent_again_and_counts_nothing(tmp_path: Path) -> None:
    """The server reads nothing of the second request on a connection, and closes it."""
    with counting_server(1) as base_url:
        made = teacher_workspace(tmp_path, base_url, collection={"concurrency": 1})
        summary = collect(made, 12)
    assert summary is not None
    assert (summary.answered, summary.requests, summary.uncertain) == (12, 12, [])


@contextmanager
def counting_server(most: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        served = 0

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

        def handle_one_request(self) -> None:
            if self.served == most:
                self.rfile.peek(1)  # type: ignore[attr-defined]
                self.close_connection = True
                return
            super().handle_one_request()

        def do_POST(self) -> None:
            self.served += 1
            time.sleep(0.03)  # or all are asked before the first connection may be used again
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps(completion().body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def test_d19_a_connection_lost_late_may_have_been_billed(tmp_path: Path) -> None:
    """After the time of an answer: an answer may have been made, as after any cut connection."""

    def answer(asked: Asked) -> Response:
        time.sleep(0.03)
        if asked.number == 6:
            threading.Event().wait(0.4)
            raise ConnectionAbortedError
        return completion()

    with serving(answer) as server:
        made = teacher_workspace(tmp_path, server.base_url, collection={"concurrency": 1})
        summary = collect(made, 8)
    assert summary is not None
    assert (summary.answered, len(summary.uncertain)) == (8, 1)


def test_connections_are_used_again_where_the_server_keeps_them(tmp_path: Path) -> None:
    with serving(lambda _: completion()) as server:
        made = teacher_workspace(tmp_path, server.base_url, collection={"concurrency": 2},
                                 provider={"requests_per_minute": 12000.0})  # fmt: skip
        collect(made, 240)
        assert len(server.connections) < 160


# ---- 16: proxies


def test_d16_the_environments_proxy_is_asked_and_this_machine_never_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda _: completion()) as proxy, serving(lambda _: completion()) as direct:
        monkeypatch.setenv("http_proxy", proxy.base_url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "inside.test")
        far = teacher_workspace(tmp_path / "far", "http://teacher.test/v1")
        collect(far, 2)
        assert {one.path for one in proxy.asked} == {"http://teacher.test/v1/chat/completions"}
        collect(teacher_workspace(tmp_path / "near", direct.base_url), 2)
        assert (len(proxy.asked), len(direct.asked)) == (2, 2)


def endpoint(base_url: str, proxy: str | None = None) -> Endpoint:
    return Endpoint("p", base_url, "m", proxy=proxy)


def test_d16_no_proxy_the_setting_and_a_name_and_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://user:word@proxy.test:3128")
    monkeypatch.setenv("no_proxy", "inside.test")
    proxy, login = choose_proxy(endpoint("https://api.test/v1"))
    assert str(proxy) == "http://proxy.test:3128"
    assert login is not None
    assert (login.login, login.password) == ("user", "word")
    assert choose_proxy(endpoint("https://inside.test/v1")) == (None, None)
    assert choose_proxy(endpoint("https://api.test/v1", "")) == (None, None)
    asked, _ = choose_proxy(endpoint("http://127.0.0.1:8000/v1", "http://proxy.test:3128"))
    assert str(asked) == "http://proxy.test:3128"
    with pytest.raises(ProviderUnusable, match="expected http://"):
        choose_proxy(endpoint("https://api.test/v1", "socks5://proxy.test:1080"))
    assert [is_this_machine(h) for h in ("localhost", "127.8.0.1", "::1", "10.0.0.1")] == [
        True, True, True, False,
    ]  # fmt: skip


def test_d16_a_proxy_that_does_not_connect_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    made = teacher_workspace(tmp_path, "http://teacher.test/v1", collection={"max_attempts": 1})
    with pytest.raises(ProviderUnusable, match="the proxy"):
        collect(made, 1)


# ---- 18: keys


def test_d18_a_key_in_the_environment_that_hides_another_in_env_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(asked: Asked) -> Response:
        good = asked.headers.get("Authorization") == "Bearer new-key-222222"
        return completion() if good else refusal(401, "Incorrect API key: old-key-111111")

    with serving(answer) as server:
        made = teacher_workspace(tmp_path, server.base_url, provider={"api_key_env": "DIALECT_KEY"}).load()
        src = put(teacher_workspace(tmp_path, server.base_url), prompts(2))
        (tmp_path / ".env").write_text("DIALECT_KEY=new-key-222222\n")
        for name in ("nexa_distill", "configs"):
            (tmp_path / name).symlink_to(ROOT / name)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DIALECT_KEY", "old-key-111111")
        with pytest.raises(ProviderUnusable) as stopped:
            collect_teacher.run(made, src)
        said = str(stopped.value)
        assert "`unset DIALECT_KEY`" in said
        assert "than .env" in said
        assert "111111" not in said
        assert "222222" not in said
        monkeypatch.delenv("DIALECT_KEY")
        summary = collect_teacher.run(made, src)
    assert summary is not None
    assert summary.answered == 2


# ---- 27: certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    both = folder / "server.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem",
         "-out", folder / "cert.pem"], check=True, capture_output=True,
    )  # fmt: skip
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


def test_d27_an_untrusted_certificate_stops_at_once_with_the_remedy(tmp_path: Path, certificate: Path) -> None:
    with serving(lambda _: completion(), certificate=certificate) as server:
        made = teacher_workspace(tmp_path, server.base_url)
        with pytest.raises(ProviderUnusable, match="SSL_CERT_FILE") as stopped:
            collect(made, 1)
        assert "in 1 attempts" in str(stopped.value)
        plain = server.base_url.replace("https", "http")
        other = teacher_workspace(tmp_path / "b", plain.replace("http", "https"))
        put(other, prompts(1))
        environment = os.environ | {"SSL_CERT_FILE": str(certificate)}
        src = other.folder / "prompts.parquet"
        other.run("nexa_distill.collect_teacher", "--src", src, env=environment)
    assert len(answers(other)) == 1


def test_d27_https_asked_of_a_plain_server(tmp_path: Path) -> None:
    with serving(lambda _: completion()) as server:
        made = teacher_workspace(tmp_path, server.base_url.replace("http", "https"), collection={"max_attempts": 1})
        with pytest.raises(ProviderUnusable, match="Try http://"):
            collect(made, 1)


def test_a_key_that_the_server_repeats_is_not_kept() -> None:
    kept = Transport(Endpoint("p", "http://h/v1", "m", "secret-1"), 1.0).endpoint
    assert kept.without_key(b"bad key secret-1") == b"bad key ***"
