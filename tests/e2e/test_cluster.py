"""The production form as plain processes: two services behind nginx on PostgreSQL, Redis and an object storage."""

import dataclasses
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import httpx2
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from deploy import proxy, servers, topology
from deploy.cluster import Cluster
from deploy.servers import postgres_binaries
from service.cli.children import Children, free_port

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


def by_hand(cluster, home, storage, *command):
    """What `docker compose run --rm ops COMMAND` does, or `run --rm migrate`, on a data folder and an object storage."""
    name, command = ("migrate", ()) if command == ("migrate",) else (topology.OPS, command)
    (process,) = topology.processes([name])
    if command:
        assert command[0] == process.command[0] == "prefixserve"
        process = dataclasses.replace(process, command=("python", "-m", "service.cli", *command[1:]))
    with tempfile.TemporaryDirectory(dir=cluster.home) as shown:
        secrets = topology.show(process, cluster.secrets, Path(shown))
        told = topology.environment(process, topology.places(secrets, home, storage, 0, 0))
        told["PATH"] = f"{postgres_binaries()[0]}:{os.environ['PATH']}"
        ended = subprocess.run(
            process.argv(), env=told, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_operators_container_makes_a_backup_of_all_and_puts_it_into_a_new_place(cluster, tenant):
    assert tenant.post("/v1/users", json={"id": "bob"}).status_code == 200
    rows, told = b'{"prompt": "a", "completion": "b"}\n' * 20, {"purpose": "fine-tune", "user": "bob"}
    held = [
        tenant.post("/v1/files", data=told, files={"file": (name, rows)})
        for name in ("kept.jsonl", "gone.jsonl")
    ]
    assert {answer.status_code for answer in held} == {200}, held[0].text
    backup, old = cluster.home / "backups" / "first", cluster._storage
    assert "2 files" in by_hand(cluster, cluster.home, old, "prefixserve", "backup", str(backup))
    assert tenant.delete(f"/v1/files/{held[1].json()['id']}").status_code == 200

    storage = free_port()
    servers.start_storage(cluster.children, storage)
    cluster.children.stop(*topology.OURS)
    home = cluster.home / "new"
    (home / "data").mkdir(parents=True, mode=0o700)
    shutil.copytree(cluster.home / "data" / "secrets", home / "data" / "secrets")
    by_hand(cluster, home, storage, "migrate")  # makes the bucket
    owner = (cluster.secrets / "prefix_owner_database_url").read_text().strip()
    password = (cluster.secrets / "postgres_password").read_text().strip()
    with psycopg.connect(
        make_conninfo(owner, user="postgres", password=password, dbname="postgres"), autocommit=True
    ) as server:
        server.execute("DROP DATABASE prefixserve WITH (FORCE)")
        server.execute("CREATE DATABASE prefixserve OWNER prefixserve_owner")
    ledger = str(cluster.home / "data" / "ledger")
    restored = by_hand(cluster, home, storage, "prefixserve", "restore", str(backup), "--ledger", ledger)
    assert "2 files" in restored
    found = by_hand(cluster, home, storage, "prefixserve", "fsck", "--deep")
    assert "1 files named by rows, 1 files there (each read)" in found
    assert "unbroken" in by_hand(cluster, home, storage, "prefixserve", "audit-verify")
