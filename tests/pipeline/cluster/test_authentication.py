"""What asks for a token and what does not, over real HTTP and gRPC servers on the loopback."""

import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest

from pipeline.cluster import connection
from pipeline.cluster.connection import OPEN_CLUSTER, require_token
from privacy.errors import UmbraError

TOKEN = "t" * 64


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USE_TLS", OPEN_CLUSTER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    monkeypatch.delitem(connection.sys.modules, "ray", raising=False)


@pytest.fixture(params=["http", "grpc"])
def serve(request):
    """Start a cluster's door that asks for `token`, or nobody if None; return its address."""
    running = []

    def start(token):
        start_one = _http if request.param == "http" else _grpc
        address, stop = start_one(token)
        running.append(stop)
        return address

    yield start
    for stop in running:
        stop()


def _http(token):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            given = self.headers.get("Authorization")
            allowed = token is None or given == f"Bearer {token}"
            self.send_response(200 if allowed else 403 if given else 401)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}", server.shutdown


def _grpc(token):
    def answer(request, context):
        given = dict(context.invocation_metadata()).get("authorization")
        if token is not None and given != f"Bearer {token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or incorrect")
        return b""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return f"127.0.0.1:{port}", lambda: server.stop(None)


def test_a_cluster_that_requires_this_token_is_accepted(serve, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    require_token(serve(TOKEN))
    assert connection.os.environ["RAY_AUTH_MODE"] == "token"


def test_the_token_may_be_in_a_file(serve, tmp_path):
    (tmp_path / "auth_token").write_text(f"{TOKEN}\n")
    require_token(serve(TOKEN))


def test_an_open_cluster_is_refused_unless_it_is_allowed_explicitly(serve, monkeypatch):
    address = serve(None)
    with pytest.raises(UmbraError, match="asks nobody for a token"):
        require_token(address)
    monkeypatch.setenv(OPEN_CLUSTER, "0")
    with pytest.raises(UmbraError, match=OPEN_CLUSTER):
        require_token(address)
    monkeypatch.setenv(OPEN_CLUSTER, "1")
    require_token(address)
    assert "RAY_AUTH_MODE" not in connection.os.environ


def test_a_wrong_token_is_refused_with_a_message(serve, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong" * 10)
    with pytest.raises(UmbraError, match="refused the token") as raised:
        require_token(serve(TOKEN))
    assert "wrong" not in str(raised.value)


def test_a_missing_token_is_an_error(serve):
    with pytest.raises(UmbraError, match="there is none here"):
        require_token(serve(TOKEN))


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_unreachable_cluster_is_an_error(address):
    with pytest.raises(UmbraError, match="could not be reached"):
        require_token(address)


def test_a_password_in_an_address_is_refused():
    with pytest.raises(UmbraError, match="may hold no password"):
        require_token("http://user:word@127.0.0.1:1")
