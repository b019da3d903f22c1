"""The service and the worker as real processes on a folder of their own, for tests that kill them."""

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2

from service.cli.children import free_port

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples" / "data"
ADMIN_KEY = "an-admin-key-for-real-processes"
READY_S = 120


def carried(name, count=None):
    """Rows of a carried dataset."""
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return rows[:count]


def jsonl(rows):
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


class Machine:
    """One data folder and the processes on it."""

    def __init__(self, folder, **settings):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFIX_")}
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = kept | {
            "PREFIX_DATA_DIR": str(folder / "store"),
            "PREFIX_PORT": str(self.port),
            "PREFIX_METRICS_PORT": "0",
            "PREFIX_ADMIN_KEY": ADMIN_KEY,
            "OMP_NUM_THREADS": "1",
            **{f"PREFIX_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.processes, self._clients = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for client in self._clients:
            client.close()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(120)

    def start(self, module):
        with (self.folder / f"{module}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def serve(self):
        process = self.start("service")
        give_up = time.monotonic() + READY_S
        with httpx2.Client(trust_env=False) as probe:
            while True:
                assert process.poll() is None, self.said("service")
                assert time.monotonic() < give_up, self.said("service")
                try:
                    if probe.get(f"{self.url}/readyz").status_code == 200:
                        return process
                except httpx2.TransportError:
                    pass
                time.sleep(0.1)

    def work(self):
        return self.start("trainer_worker")

    def said(self, module):
        path = self.folder / f"{module}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self, key):
        headers = {"Authorization": f"Bearer {key}"}
        made = httpx2.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False)
        made.key = key
        self._clients.append(made)
        return made

    def tenant(self, name="acme"):
        made = self.client(ADMIN_KEY).post("/v1/tenants", json={"name": name}).json()
        return self.client(made["api_key"])

    def user(self, tenant, name):
        assert tenant.post("/v1/users", json={"id": name}).status_code == 200
        return self.client(tenant.post("/v1/keys", json={"user": name}).json()["api_key"])

    def upload(self, client, rows, **fields):
        answer = client.post(
            "/v1/files", data={"purpose": "fine-tune", **fields}, files={"file": ("t.jsonl", jsonl(rows))}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def train(self, client, file, suffix, **body):
        asked = {"model": "gpt2-mini", "training_file": file, "suffix": suffix, "seed": 1, **body}
        answer = client.post("/v1/fine_tuning/jobs", json=asked)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def wait(self, client, job_id, until=lambda job: job["status"] in {"succeeded", "failed", "cancelled"}):
        give_up = time.monotonic() + 240
        while True:
            job = client.get(f"/v1/fine_tuning/jobs/{job_id}").json()
            if until(job):
                return job
            assert job["status"] in {"queued", "running"}, job
            assert time.monotonic() < give_up, (job, self.said("trainer_worker")[-3000:])
            time.sleep(0.1)


def ended(process, seconds=60):
    return process.wait(seconds)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait(120)


def children_of(pid):
    """Processes that a process has started and that still are."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
