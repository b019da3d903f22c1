"""Each verb sends what the wire wants and prints what a person needs."""

import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from database_making import DATABASES
from sqlalchemy.engine import make_url
from typer.main import get_command
from wire import piece, sse

from service.cli.app import app
from service.cli.connection import Refused
from service.cli.terminal import CommandError

JOB = "/v1/fine_tuning/jobs"


def sent(wire, index=-1):
    return json.loads(wire.requests[index][3])


def test_tenants_use_the_admin_key_and_show_the_new_key_once(wire, command):
    made = {"id": "tenant-1", "name": "acme", "api_key": "pfx_live_x"}
    wire.answers["POST", "/v1/tenants"] = (200, made)
    shown = command("tenants", "--admin-key", "root", "create", "acme").output
    assert sent(wire) == {"name": "acme"}
    assert wire.requests[0][2]["Authorization"] == "Bearer root"
    assert "pfx_live_x" in shown


def test_keys_for_a_user_name_the_user(wire, command):
    wire.answers["POST", "/v1/keys"] = (200, {"id": "k", "user": "alice", "api_key": "pfx_live_y"})
    command("keys", "create", "--user", "alice", "--scope", "generate")
    assert sent(wire) == {"user": "alice", "scopes": ["generate"]}


def test_an_empty_list_says_so(wire, command):
    wire.answers["GET", "/v1/users"] = (200, {"data": [], "has_more": False})
    assert command("users", "list").output == "no users yet\n"


def test_a_slow_user_deletion_is_polled_until_it_is_done(wire, command):
    wire.answers["DELETE", "/v1/users/alice"] = (202, {"id": "alice", "deleted": False, "erasure": "era-1"})
    wire.answers["GET", "/v1/erasures/era-1"] = [
        (200, {"id": "era-1", "deleted": False}),
        (200, {"id": "era-1", "deleted": True}),
    ]
    assert command("users", "delete", "alice").output == "alice deleted\n"
    assert [request[0] for request in wire.requests] == ["DELETE", "GET", "GET"]


def test_a_packed_dataset_is_unpacked_before_it_is_sent(wire, command, tmp_path):
    row = b'{"prompt": "a", "completion": "b"}\n'
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(row))
    wire.answers["POST", "/v1/files"] = (
        200,
        {"id": "file-1", "filename": "rows.jsonl", "bytes": len(row), "status": "processed"},
    )
    shown = command("datasets", "upload", str(path), "--user", "alice").output
    body = wire.requests[0][3]
    assert row in body
    assert b'filename="rows.jsonl"' in body
    assert b'name="user"' in body
    assert b'name="task"' not in body
    assert "file-1" in shown


def test_a_dataset_that_cannot_be_read_is_a_sentence(command, tmp_path):
    broken = tmp_path / "rows.jsonl.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(CommandError, match="cannot read"):
        command("datasets", "upload", str(broken))
    with pytest.raises(CommandError, match="cannot read"):
        command("datasets", "upload", str(tmp_path / "absent.jsonl"))


def test_train_creates_the_job_and_shows_it_to_its_end(wire, command):
    ended = {
        "id": "ftjob-1",
        "status": "succeeded",
        "fine_tuned_model": "alice:voice@1",
        "result": {"base_loss": 4.0, "held_out_loss": 2.5, "promoted": True},
    }
    running = {
        "id": "ftjob-1",
        "status": "running",
        "progress": {"update": 5, "updates": 20, "train_loss": 3.1, "held_out_loss": 3, "seconds_left": 61},
    }
    wire.answers["GET", "/v1/models"] = (200, {"data": [{"id": "gpt2-mini"}]})
    wire.answers["POST", JOB] = (200, {"id": "ftjob-1", "status": "queued"})
    wire.answers["GET", f"{JOB}/ftjob-1"] = [(200, running), (200, ended)]
    result = command("train", "alice:voice", "file-9", "--max-steps", "20", "--prefix-length", "12")
    created = next(
        json.loads(body) for method, path, _, body in wire.requests if (method, path) == ("POST", JOB)
    )
    assert created == {
        "model": "gpt2-mini",
        "training_file": "file-9",
        "prefix": "alice:voice",
        "hyperparameters": {"max_steps": 20, "prefix_length": 12},
    }
    assert "update 5 of 20  train 3.100  held-out 3.000  1:01 left" in result.output
    assert "alice:voice@1 is live; held-out loss 4.000 -> 2.500" in result.output
    assert result.exit_code == 0


def test_train_with_a_bare_name_asks_for_a_suffix(wire, command):
    wire.answers["POST", JOB] = (200, {"id": "ftjob-1", "status": "queued"})
    command("train", "voice", "file-9", "--model", "gpt2-mini", "--no-wait")
    assert sent(wire) == {"model": "gpt2-mini", "training_file": "file-9", "suffix": "voice"}


def test_a_failed_job_ends_the_verb_with_its_reason_and_status_1(wire, command):
    failed = {"id": "ftjob-1", "status": "failed", "error": {"message": "fewer than 10 rows"}}
    wire.answers["POST", JOB] = (200, {"id": "ftjob-1", "status": "queued"})
    wire.answers["GET", f"{JOB}/ftjob-1"] = (200, failed)
    result = command("train", "voice", "file-9", "--model", "gpt2-mini")
    assert "failed: fewer than 10 rows" in result.output
    assert result.exit_code == 1


def test_generate_streams_one_prompt_as_bare_text(wire, command):
    wire.answers["POST", "/v1/completions"] = (200, sse(piece(0, "One "), piece(0, "two.", "stop")))
    assert command("generate", "alice:voice", "hello").output == "One two.\n"
    assert sent(wire)["prompt"] == ["hello"]
    assert sent(wire)["stream"] is True


def test_generate_keeps_several_answers_apart(wire, command):
    chunks = (piece(0, "a"), piece(1, "x"), piece(0, "b", "stop"), piece(1, "y", "length"))
    wire.answers["POST", "/v1/completions"] = (200, sse(*chunks))
    assert command("generate", "m", "first", "second").output == "first\nab\n\nsecond\nxy\n\n"


def test_generate_reports_an_answer_that_never_ended(wire, command):
    wire.answers["POST", "/v1/completions"] = (200, sse(piece(0, "a")))
    with pytest.raises(CommandError, match="before every answer was finished"):
        command("generate", "m", "p")


def test_a_prefix_name_keeps_its_colon_in_the_path(wire, command):
    path = "/v1/prefixes/alice:voice/promote"
    wire.answers["POST", path] = (200, {"id": "alice:voice", "live_version": 2})
    assert "alice:voice@2" in command("prefixes", "promote", "alice:voice", "2").output
    assert sent(wire) == {"version": 2}


def test_help_is_quick_and_loads_neither_torch_nor_the_store():
    script = "import sys; from service.cli import app; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = set(loaded.stdout.split())
    assert not modules & {"torch", "transformers", "sqlalchemy", "fastapi", "httpx2"}
    best = min(_seconds_of_help() for _ in range(5))
    print(f"--help takes {best:.2f} s")
    assert best < 2.0  # about 0.2 s; the bound leaves room for a busy machine


def _seconds_of_help():
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "service.cli", "--help"], check=True, capture_output=True)
    return time.monotonic() - began


def test_a_failure_prints_one_line_without_a_traceback():
    command = [sys.executable, "-m", "service.cli", "--url", "http://127.0.0.1:1", "models"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(r"error: no service answers at http://127\.0\.0\.1:1 .*\n", ended.stderr)


def test_store_verbs_say_that_they_open_the_store(command):
    for verb in ("migrate", "audit-verify", "fsck", "backup", "restore", "ledger"):
        assert "Opens the store directly" in command(verb, "--help").output


def test_store_verbs_work_without_a_service(command, tmp_path):
    assert "up to date" in command("migrate", "--data-dir", str(tmp_path)).output
    assert "0 audit entries" in command("audit-verify", "--data-dir", str(tmp_path)).output


def test_a_store_is_looked_at_backed_up_and_restored_without_a_service(command, tmp_path):
    place, again, backup = (tmp_path / name for name in ("data", "again", "backup"))
    for verb in (("fsck",), ("ledger",), ("backup", str(backup)), ("restore", str(backup))):
        with pytest.raises(CommandError, match="is not there; name the data folder"):  # and none is made
            command(*verb, "--data-dir", str(place))
    assert not place.exists()
    command("migrate", "--data-dir", str(place))
    command("audit-verify", "--data-dir", str(place))
    shown = command("backup", str(backup), "--data-dir", str(place)).output
    assert f"not in it, and needed to restore: {place / 'secrets'}" in shown
    shutil.copytree(place / "secrets", again / "secrets")
    options = ("--data-dir", str(again), "--ledger", str(place / "ledger"))
    assert "0 deletions of the ledger applied" in command("restore", str(backup), *options).output
    found = json.loads(command("fsck", "--json", "--deep", "--data-dir", str(again)).output)
    assert found["sound"]
    assert (found["missing"], found["damaged"], found["litter"]) == ([], [], [])
    lost = again / "data" / "blobs" / "ten-1" / "own-1" / "ver-1"
    lost.parent.mkdir(parents=True)
    lost.write_bytes(b"x")
    shown = command("fsck", "--grace", "0", "--data-dir", str(again)).output
    assert "litter: ten-1/own-1/ver-1" in shown
    assert json.loads(command("ledger", "--data-dir", str(again)).output)["action"] == "backup.made"


@pytest.mark.parametrize("database_url", DATABASES[1:], indirect=True)
def test_migrate_makes_the_roles_and_a_start_without_it_says_so(command, database_url, tmp_path):
    options = ("--data-dir", str(tmp_path), "--database-url", database_url)
    assert "up to date" in command("migrate", *options).output  # the others' URLs are in the environment
    assert "0 audit entries" in command("audit-verify", *options).output
    with pytest.raises(CommandError, match="not the tables' owner"):
        command("migrate", *options, "--owner-database-url", database_url)
    with pytest.raises(CommandError, match="another role than PREFIX_DATABASE_URL") as caught:
        command("migrate", *options, "--system-database-url", database_url)
    assert make_url(database_url).password not in str(caught.value)


def test_the_command_lines_of_readme_are_understood(command):
    readme = (Path(__file__).resolve().parents[3] / "README.md").read_text()
    lines = re.findall(r"\.venv/bin/prefixserve ([^#\n]+)", readme)
    assert len(lines) >= 4
    for line in lines:
        with pytest.raises(Refused):  # the wire knows none of its paths; a usage error would be raised before
            command(*shlex.split(line))


def test_the_commands_of_the_runbooks_exist():
    docs = Path(__file__).resolve().parents[3] / "docs"
    texts = [path.read_text() for path in (*(docs / "runbooks").glob("*.md"), docs / "production.md")]
    lines = [line for text in texts for line in re.findall(r"(?<![/\w])prefixserve ([a-z][^`#|>&\n]*)", text)]
    assert len(lines) > 40
    for line in lines:
        node, words = get_command(app), shlex.split(line)
        while hasattr(node, "commands"):
            node = node.commands[words.pop(0)]
        options = {name for param in node.params for name in param.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_train_asks_for_an_evaluation_as_told(wire, command):
    wire.answers["GET", "/v1/models"] = (200, {"data": [{"id": "gpt2-mini"}]})
    wire.answers["POST", JOB] = (200, {"id": "ftjob-1", "status": "queued"})
    asked = []
    for options in (
        ("--evaluate", "all"),
        ("--evaluate", "bleu,ter", "--gate", "bleu"),
        ("--gate", "chrf"),
        ("--gate", "loss"),
    ):
        command("train", "alice:voice", "file-9", "--no-wait", *options)
        body = json.loads(next(body for _, path, _, body in reversed(wire.requests) if path == JOB))
        asked.append({k: v for k, v in (body.get("evaluation") or {}).items() if v is not None})
    assert asked == [{}, {"metrics": ["bleu", "ter"], "gate": "bleu"}, {"gate": "chrf"}, {}]


def test_results_of_a_job_are_written_into_a_folder(wire, command, tmp_path):
    job = {"id": "ftjob-1", "status": "succeeded", "result_files": ["file-1", "file-2"]}
    wire.answers["GET", f"{JOB}/ftjob-1"] = (200, job)
    for number, (name, content) in enumerate((("results.json", b"{}"), ("../losses.svg", b"<svg/>")), 1):
        wire.answers["GET", f"/v1/files/file-{number}"] = (200, {"filename": name})
        wire.answers["GET", f"/v1/files/file-{number}/content"] = (200, content)
    into = tmp_path / "new" / "folder"
    command("jobs", "results", "ftjob-1", "--into", str(into))
    found = {path.name: path.read_bytes() for path in into.iterdir()}
    assert found == {"ftjob-1-results.json": b"{}", "ftjob-1-losses.svg": b"<svg/>"}
    wire.answers["GET", f"{JOB}/ftjob-1"] = (200, {**job, "status": "running", "result_files": []})
    with pytest.raises(CommandError, match="is running and has left no files"):
        command("jobs", "results", "ftjob-1")


def test_the_last_checkpoint_of_a_job_is_shown_by_the_name_to_call_it_by(wire, command):
    kept = {
        "id": "ckpt-1",
        "created_at": 1767225640,
        "fine_tuned_model_checkpoint": "alice:voice@ftjob-1",
        "step_number": 60,
        "metrics": {"step": 60, "valid_loss": 2.4012},
    }
    wire.answers["GET", f"{JOB}/ftjob-1/checkpoints"] = (200, {"data": [kept], "has_more": False})
    shown = command("jobs", "checkpoints", "ftjob-1").output
    assert re.search(r"alice:voice@ftjob-1 +60 +2\.401", shown)
    wire.answers["GET", f"{JOB}/ftjob-1/checkpoints"] = (200, {"data": [], "has_more": False})
    assert "kept none yet, or is over" in command("jobs", "checkpoints", "ftjob-1").output
