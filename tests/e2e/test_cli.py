"""The command against a real service and worker, started by the command itself."""

import gzip
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.cli.children import free_port

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "examples" / "data"
COMMAND = [sys.executable, "-m", "service.cli"]
pytestmark = pytest.mark.timeout(600)


def _hear_ctrl_c():
    """As in a terminal, also where these tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Installation:
    """`prefixserve serve --with-worker` on a folder of its own, and the command to speak to it."""

    def __init__(self, folder):
        port = free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFIX_")}
        self.url = f"http://127.0.0.1:{port}"
        self.environment = kept | {
            "PREFIX_URL": self.url,
            "PREFIX_DATA_DIR": str(folder / "store"),
            "PREFIX_PORT": str(port),
            "PREFIX_METRICS_PORT": str(free_port()),
        }
        self.folder, self.log = folder, folder / "serve.log"
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--with-worker"],
                env=self.environment,
                stdout=sink,
                stderr=sink,
                preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - no thread runs yet
            )
        give_up = time.monotonic() + 180
        while "Ctrl-C stops" not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < give_up, self.said()
            time.sleep(0.2)

    def said(self):
        return self.log.read_text(errors="replace")

    def run(self, *arguments, key=None, status=0):
        """What a command line prints; it must end with `status`."""
        ended = subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment | ({"PREFIX_API_KEY": key} if key else {}),
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert ended.returncode == status, f"{arguments}: {ended.stdout}{ended.stderr}\n{self.said()[-3000:]}"
        return ended.stdout + ended.stderr

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(120)


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    installation = Installation(tmp_path_factory.mktemp("installation"))
    yield installation
    if installation.process.poll() is None:
        installation.stop()


def key_in(text):
    return re.search(r"pfx_live_\w+", text)[0]


@pytest.fixture(scope="module")
def tenant(installation):
    """A tenant's key, made with the admin key from the place that the greeting names."""
    place = re.search(r"the admin key is in (\S+)", installation.said())[1]
    admin = Path(place).read_text().strip()
    assert admin not in installation.said()
    return key_in(installation.run("tenants", "--admin-key", admin, "create", "acme"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A dataset small enough to train in seconds."""
    lines = gzip.decompress((DATA / "quiz_master_train.jsonl.gz").read_bytes()).splitlines(keepends=True)
    path = tmp_path_factory.mktemp("rows") / "quiz.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(lines[:200])))
    return path


@pytest.fixture(scope="module")
def alice(installation, tenant, rows):
    """A user with a trained prefix, and its key."""
    installation.run("users", "create", "alice", key=tenant)
    key = key_in(installation.run("keys", "create", "--user", "alice", key=tenant))
    shown = installation.run("train", "quiz", str(rows), "--max-steps", "30", "--seed", "1", key=key)
    assert "uploaded quiz.jsonl.gz as file-" in shown
    assert re.search(r"held-out loss \d\.\d+ -> \d\.\d+", shown)
    assert "alice:quiz@1 is live" in shown
    return key


PROMPT = "category : music | answer : R. Kelly"


def test_a_trained_prefix_generates_by_its_name_and_by_its_version(installation, alice):
    live = installation.run("generate", "alice:quiz", PROMPT, "--max-tokens", "12", key=alice)
    version = installation.run("generate", "alice:quiz@1", PROMPT, "--max-tokens", "12", key=alice)
    assert live.strip()
    assert live == version
    several = installation.run("generate", "alice:quiz", PROMPT, "category : a | answer : b", key=alice)
    assert PROMPT in several
    assert "category : a | answer : b" in several


def test_what_was_made_is_listed(installation, tenant, alice):
    assert "alice" in installation.run("users", "list", key=tenant)
    assert "alice:quiz" in installation.run("prefixes", "list", key=alice)
    assert re.search(
        r"^1 +live", installation.run("prefixes", "versions", "alice:quiz", key=alice), re.MULTILINE
    )
    assert "quiz.jsonl" in installation.run("datasets", "list", key=alice)
    models = installation.run("models", key=alice).splitlines()
    assert models[1].startswith("gpt2-mini")
    assert any(line.startswith("alice:quiz") for line in models)
    job = re.search(r"ftjob-\w+", installation.run("jobs", "list", key=alice))[0]
    assert installation.run("jobs", "events", job, key=alice).count("\n") > 2
    assert "alice" in installation.run("keys", "list", key=tenant)


def test_usage_counts_what_was_generated(installation, alice):
    installation.run("generate", "alice:quiz", PROMPT, "--max-tokens", "5", key=alice)
    assert re.search(r"alice +\d+ +\d+ +\d+", installation.run("usage", key=alice))


def test_readme_s_python_runs_as_it_stands(installation, alice):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "http://127.0.0.1:8000" in block
    ended = subprocess.run(
        [sys.executable, "-c", block.replace("http://127.0.0.1:8000", installation.url)],
        env=installation.environment | {"PREFIX_API_KEY": alice},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()


def test_ctrl_c_leaves_the_job_running_and_says_so(installation, tenant, rows):
    installation.run("users", "create", "carol", key=tenant)
    key = key_in(installation.run("keys", "create", "--user", "carol", key=tenant))
    watching = subprocess.Popen(
        [*COMMAND, "train", "quiz", str(rows), "--max-steps", "5000"],
        preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - no thread runs yet
        env=installation.environment | {"PREFIX_API_KEY": key},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in watching.stdout:
        if "running" in line:
            break
    watching.send_signal(signal.SIGINT)
    said, _ = watching.communicate(timeout=120)
    assert watching.returncode == 130
    job = re.search(r"job (ftjob-\w+) goes on", said)[1]
    assert re.search(rf"{job} +(queued|running)", installation.run("jobs", "list", key=key))
    assert "cancelled" in installation.run("jobs", "cancel", job, key=key)


def test_a_deleted_user_is_gone_and_others_still_answer(installation, tenant, alice):
    installation.run("users", "create", "dave", key=tenant)
    key = key_in(installation.run("keys", "create", "--user", "dave", key=tenant))
    assert "dave deleted" in installation.run("users", "delete", "dave", key=tenant)
    assert "401" in installation.run("models", key=key, status=1)
    assert "404" in installation.run("generate", "dave:quiz", PROMPT, key=tenant, status=1)
    installation.run("generate", "alice:quiz", PROMPT, "--max-tokens", "4", key=alice)


def test_a_wrong_key_is_one_sentence(installation):
    shown = installation.run("models", key="pfx_live_wrong", status=1)
    assert shown.startswith("error: ")
    assert "Traceback" not in shown


def test_the_audit_log_of_a_used_store_is_unbroken(installation, alice):
    assert re.search(r"^\d+ audit entries, unbroken", installation.run("audit-verify"))


def test_ctrl_c_stops_service_and_worker(tmp_path):
    installation = Installation(tmp_path)
    assert installation.stop() == 0
    assert "stopping" in installation.said()
    assert "no service answers" in installation.run("models", status=1)
