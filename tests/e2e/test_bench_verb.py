"""`prefixserve bench` against a real service, as somebody who runs one would use it."""

import json
import os
import re
import subprocess
import sys

import pytest

from service.cli.children import Children, free_port

COMMAND = [sys.executable, "-m", "service.cli"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("bench"), free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFIX_")}
    own = {
        "PREFIX_URL": f"http://127.0.0.1:{port}",
        "PREFIX_DATA_DIR": str(folder / "store"),
        "PREFIX_PORT": str(port),
        "PREFIX_METRICS_PORT": "0",
    }
    with Children(kept | own, folder) as children:
        children.start("service", "service")
        children.wait_ready(own["PREFIX_URL"])
        admin = (folder / "store" / "secrets" / "admin_key").read_text().strip()
        made = ran(kept | own | {"PREFIX_ADMIN_KEY": admin}, "tenants", "create", "acme")
        key = re.search(r"pfx_live_\w+", made.stdout)[0]
        yield kept | own | {"PREFIX_API_KEY": key}


def ran(environment, *arguments):
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_load_on_a_running_service_is_measured(environment):
    sizes = ("--prompt-tokens", "5-40", "--output-tokens", "4-8")
    found = json.loads(ran(environment, "bench", "--requests", "12", *sizes, "--json").stdout)
    assert found["answered"] == found["requests"] == 12
    assert not found["errors"]
    assert 12 <= found["completion_tokens"] <= 96
    assert 0 < found["first_token"]["p50"] <= found["whole"]["max"]
    assert found["tokens_per_second"] > 0


def test_random_arrivals_for_some_seconds_are_shown_as_a_table(environment):
    shown = ran(
        environment, "bench", "--rate", "10", "--seconds", "1.5", "--prompt-tokens", "10", "--output-tokens", "4"
    ).stdout  # fmt: skip
    assert "time to first token" in shown
    assert "time between tokens" in shown
    assert re.search(r"(\d+) of \1 requests answered", shown)
