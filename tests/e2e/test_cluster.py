"""The production form as plain processes: two services behind nginx on PostgreSQL, Redis and an object storage."""

import shutil
import tempfile
from pathlib import Path

import httpx2
import pytest

from deploy import proxy
from deploy.cluster import Cluster
from deploy.servers import postgres_binaries
from service.cli.children import Children

LACKS = [
    *([] if (lacks := proxy.missing()) is None else [lacks]),
    *(["redis-server is not installed"] if shutil.which("redis-server") is None else []),
    *([] if postgres_binaries() else ["PostgreSQL's programs are not installed"]),
]
pytestmark = pytest.mark.skipif(bool(LACKS), reason="; ".join(LACKS) or "nothing is missing")
PATIENCE_S = 120
SMALL = {
    "PREFIX_ROWS": "4",
    "PREFIX_KV_BYTES": str(64 << 20),
    "PREFIX_KERNELS": "torch",
    "OMP_NUM_THREADS": "1",
}


def client(url, key):
    return httpx2.Client(
        base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_S, trust_env=False
    )


@pytest.fixture(scope="module")
def cluster():
    # Not pytest's folder, which PostgreSQL's own user cannot enter.
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o711)
        (home / "logs").mkdir(mode=0o700)
        with Children({}, home / "logs") as children:
            made = Cluster(home, children, settings=SMALL)
            try:
                made.start(workers=0)
                yield made
            except BaseException:
                print(children.tails())
                raise
            finally:
                made.stop()


@pytest.fixture(scope="module")
def tenant(cluster):
    with client(cluster.url, cluster.admin_key()) as admin:
        key = admin.post("/v1/tenants", json={"name": "acme"}).json()["api_key"]
    with client(cluster.url, key) as made:
        made.key = key
        yield made


def test_an_answer_of_the_model_comes_through_nginx_piece_by_piece(tenant):
    asked = {"model": "gpt2-mini", "prompt": "Once", "max_tokens": 12, "temperature": 0, "stream": True}
    with tenant.stream("POST", "/v1/completions", json=asked, headers={"X-Request-ID": "mine-1"}) as answer:
        assert answer.status_code == 200
        assert answer.headers["X-Request-ID"] == "mine-1"
        pieces = [piece for piece in answer.iter_raw() if piece]
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    assert len(pieces) > 3


def test_what_one_service_did_the_other_knows_and_a_deletion_holds_in_both(cluster, tenant):
    assert tenant.post("/v1/users", json={"id": "alice"}).status_code == 200
    alice = tenant.post("/v1/keys", json={"user": "alice"}).json()["api_key"]
    rows = b'{"prompt": "a", "completion": "b"}\n' * 20
    sent = tenant.post(
        "/v1/files", data={"purpose": "fine-tune", "user": "alice"}, files={"file": ("t.jsonl", rows)}
    )
    assert sent.status_code == 200, sent.text
    for url in cluster.service_urls():
        with client(url, alice) as direct:
            assert direct.get(f"/v1/files/{sent.json()['id']}/content").status_code == 200
    assert tenant.delete("/v1/users/alice").status_code == 200
    for url in cluster.service_urls():
        with client(url, alice) as direct:
            assert direct.get("/v1/models").status_code == 401


def test_sealed_files_are_in_the_bucket_and_none_under_the_data_folder(cluster):
    assert not [path for path in (cluster.home / "data" / "data").rglob("*") if path.is_file()]


def test_a_large_upload_without_a_key_is_answered_401_rather_than_cut(cluster):
    with client(cluster.url, "nobody") as stranger:
        form = {"file": ("t.jsonl", b"x" * (8 << 20))}
        answer = stranger.post("/v1/files", data={"purpose": "fine-tune"}, files=form)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"]


def test_a_prompt_above_64_kb_is_answered_by_the_service(tenant):
    answer = tenant.post("/v1/completions", json={"model": "gpt2-mini", "prompt": "word " * 20_000})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_metrics_are_on_their_own_ports_and_nginx_leads_to_none(cluster, tenant):
    assert tenant.get("/metrics").status_code == 404
    for _, port in cluster._ports.values():
        assert "prefix_engine_rows" in httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text


def test_no_log_of_any_process_holds_a_key_or_a_users_name(cluster, tenant):
    said = "".join(path.read_text(errors="replace") for path in (cluster.home / "logs").iterdir())
    assert "proxy.done" in said
    ours = "".join(
        path.read_text(errors="replace")
        for path in (cluster.home / "logs").iterdir()
        if path.stem.startswith(("service", "nginx", "migrate"))
    )
    for word in (tenant.key, cluster.admin_key(), "alice"):
        assert word not in ours
    for secret in cluster.secrets.iterdir():
        if secret.name.endswith("url"):
            assert secret.read_text().strip() not in said


def test_when_a_service_ends_the_other_answers_all(cluster, tenant):
    first = next(child for child in cluster.children._children if child.name == "service-1")
    first.process.terminate()
    assert first.process.wait(PATIENCE_S) == 0
    cluster.children._children.remove(first)
    for n in range(8):
        asked = {"model": "gpt2-mini", "prompt": f"Once {n}", "max_tokens": 2}
        assert tenant.post("/v1/completions", json=asked).status_code == 200
        assert tenant.get("/v1/models").status_code == 200
