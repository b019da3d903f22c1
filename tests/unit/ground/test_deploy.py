"""The production form: both compose files are ones, hold nothing open, and say what the script starts."""

import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml

from deploy import proxy, secret_making, topology
from prefix_store import StoreSettings
from service.settings import ServiceSettings
from trainer_worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
SMALL = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PRODUCTION = topology.read()
SERVICES = PRODUCTION["services"]
CUDA = topology.read(ROOT / "docker-compose.cuda.yml")
NGINX = (DEPLOY / "nginx" / "nginx.conf").read_text()
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "prefixserve.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]


def seconds(text):
    return int(text.removesuffix("s"))


def by_default(text):
    """A value of a compose file where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("compose", [SMALL, PRODUCTION, CUDA], ids=["small", "production", "cuda"])
def test_a_compose_file_is_one_by_the_specification(compose):
    schema = json.loads((DEPLOY / "compose" / "compose_spec.json").read_text())
    told = {key: value for key, value in compose.items() if key != "name"}  # younger than this edition
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(told)
    with pytest.raises(jsonschema.ValidationError):  # it does look
        validator.validate({"services": {"one": {"imge": "x"}}})


def test_whatever_a_service_names_is_there():
    for name, service in SERVICES.items():
        assert set(service.get("secrets", ())) <= set(PRODUCTION["secrets"]), name
        assert set(service["networks"]) <= set(PRODUCTION["networks"]), name
        assert set(service.get("depends_on", ())) <= set(SERVICES), name
        for volume in service.get("volumes", ()):
            source = by_default(volume).split(":")[0]
            there = (ROOT / source).exists() if source.startswith("./") else source in PRODUCTION["volumes"]
            assert there, f"{name}: {source}"
        for file in service.get("env_file", ()):
            assert (ROOT / file).is_file()


def test_only_nginx_and_grafana_have_ports_and_only_on_this_machine():
    assert {name: one["ports"] for name, one in SERVICES.items() if "ports" in one} == {
        "nginx": ["127.0.0.1:8080:8080"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    assert PRODUCTION["networks"]["back"]["internal"] is True
    assert {name for name, one in SERVICES.items() if "front" in one["networks"]} == {"nginx", "grafana"}


def test_every_container_is_read_only_and_may_not_gain_rights():
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name


@pytest.mark.parametrize("compose", [SMALL, PRODUCTION], ids=["small", "production"])
def test_no_container_fills_the_disk_with_its_log_or_runs_out_of_files(compose):
    for name, service in compose["services"].items():
        assert service["logging"]["driver"] == "local", name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        assert service["ulimits"]["nofile"] >= 8192, name
        assert service["ulimits"]["core"] == 1, name


def test_nginx_may_open_as_many_files_as_its_connections_want():
    connections = int(re.search(r"worker_connections (\d+);", NGINX)[1])
    files = int(re.search(r"worker_rlimit_nofile (\d+);", NGINX)[1])
    assert 2 * connections <= files <= SERVICES["nginx"]["ulimits"]["nofile"]


def test_the_kernel_holds_as_little_of_an_answer_beside_nginx_as_the_limits_say():
    told = (ROOT / "docs" / "isolation-and-erasure.md").read_text()
    for name, said in (("tcp_rmem", "64 KiB"), ("tcp_wmem", "128 KiB")):
        least, usual, most = map(int, SERVICES["nginx"]["sysctls"][f"net.ipv4.{name}"].split())
        assert least <= usual <= most
        assert f"{said} (`{name}`)" in told
        assert most == int(said.split()[0]) << 10


def test_nginx_has_the_fixed_addresses_of_the_services_and_nobody_else_can_be_given_one():
    (told,) = PRODUCTION["networks"]["back"]["ipam"]["config"]
    fixed = {
        name: ipaddress.ip_address(one["networks"]["back"]["ipv4_address"])
        for name, one in SERVICES.items()
        if isinstance(one["networks"], dict)
    }
    assert set(fixed) == {"service-1", "service-2"}
    subnet, free = (ipaddress.ip_network(told[name]) for name in ("subnet", "ip_range"))
    assert free.subnet_of(subnet)
    for address in fixed.values():
        assert address in subnet
        assert address not in free
        assert address != subnet[1]  # the gateway's
    lines = (DEPLOY / "nginx/compose/servers.conf").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        f"server {address}:{SERVICES[name]['environment']['PREFIX_PORT']} max_fails=0;"
        for name, address in fixed.items()
    ]


def test_the_way_in_trusts_and_spares_the_same_addresses():
    trusted = re.findall(r"set_real_ip_from (\S+);", NGINX)
    spared = re.findall(r"^ +(\S+) 1;$", NGINX.partition("geo $own {")[2].partition("}")[0], re.MULTILINE)
    assert trusted == spared
    assert all(ipaddress.ip_network(one).is_private for one in trusted)


def test_with_a_gpu_every_service_and_worker_is_given_it_and_asks_for_it():
    given = {name for name in topology.OURS if name != "migrate"}
    assert set(CUDA["services"]) == given
    for name, service in CUDA["services"].items():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}, name
        assert service["environment"] == {"PREFIX_DEVICE": "cuda"}, name
        assert all("device" in known.model_fields for known in (ServiceSettings, WorkerSettings))
        assert SERVICES[name]["build"]["args"] == {"VARIANT": "${PREFIXSERVE_VARIANT:-cpu}"}


def test_a_service_that_is_to_have_a_gpu_does_not_start_without(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFIX_")}
    told = {"PREFIX_DATA_DIR": str(tmp_path), "PREFIX_PORT": "0", "PREFIX_METRICS_PORT": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", "service"],
        env=kept | told | CUDA["services"]["service-1"]["environment"],
        capture_output=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )
    assert ended.returncode == 1
    assert b"finds no CUDA device" in ended.stderr


def test_the_operators_container_has_what_a_backup_wants_and_starts_with_no_other():
    ops, service = SERVICES[topology.OPS], SERVICES["service-1"]
    assert [name for name, one in SERVICES.items() if "profiles" in one] == [topology.OPS]
    assert ops["restart"] == "no"
    assert set(ops["secrets"]) == {*service["secrets"], "prefix_owner_database_url"}
    assert set(service["volumes"]) < set(ops["volumes"])
    assert "backups:/backups" in map(by_default, ops["volumes"])
    assert ops["env_file"] == service["env_file"]
    places = {"PREFIX_HOST", "PREFIX_PORT", "PREFIX_METRICS_PORT"}
    assert ops["environment"] == {
        key: value for key, value in service["environment"].items() if key not in places
    }


def test_the_page_of_a_restore_copies_the_ledger_when_nobody_can_delete_any_more():
    page = (ROOT / "docs" / "production.md").read_text()
    blocks = re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)
    (block,) = [one for one in blocks if "prefixserve restore" in one]
    stop, copy, down = (block.find(one) for one in ("compose stop", "/ledger /backups/", "compose down"))
    assert 0 <= stop < copy < down
    assert block.find("/ledger /backups/", copy + 1) == -1
    stopped = set(re.search(r"compose stop ([^#\n]*)", block)[1].split())
    assert stopped == {"nginx", *topology.OURS} - {"migrate"}
    assert stopped.isdisjoint(SERVICES[topology.OPS]["depends_on"])
    assert "--no-deps ops cp" in block  # which reads its volumes alone, whatever does not start any more
    told = (ROOT / "docs" / "runbooks" / "restore.md").read_text().partition("**Do**")[2]
    assert re.search(r"1\. Stop every process.*?take its\s+newest ledger.*?\n2\.", told, re.DOTALL)


def test_the_image_of_a_backup_has_the_programs_of_the_servers_own_version():
    told = (ROOT / "Dockerfile").read_text()
    major = re.search(r"^ARG POSTGRES=(\d+)$", told, re.MULTILINE)[1]
    server, release = SERVICES["postgres"]["image"].removeprefix("postgres:").split("-")
    assert major == server
    bases = re.findall(r"^FROM (?:\w+:)?(\S+) AS (\w+)$", told, re.MULTILINE)
    assert len(bases) == told.count("\nFROM ")
    assert {base for base, _ in bases} == {
        f"3.11-slim-{release}",
        "base",
    }  # of whose packages the client is one
    stages = [stage for _, stage in bases]
    assert stages[-1] == "process"
    for name, service in {**SERVICES, **SMALL["services"]}.items():
        if "context" in service.get("build", ()):
            assert service["build"]["target"] == ("ops" if name == topology.OPS else "process")
    stage = told.partition("AS ops\n")[2].partition("\nFROM ")[0]
    assert "postgresql-client-${POSTGRES}" in stage
    assert re.findall(r"^USER (\w+)$", stage, re.MULTILINE)[-1] == "prefixserve"


@pytest.mark.parametrize("place", ["usr/local/bin", "app"])
def test_the_object_storage_is_found_in_either_place_and_is_given_its_keys(place, tmp_path):
    (line,) = SERVICES["s3"]["command"]
    (tmp_path / place).mkdir(parents=True)
    program = tmp_path / place / "versitygw"
    program.write_text('#!/bin/sh\necho "$ROOT_ACCESS_KEY $ROOT_SECRET_KEY $*"\n')
    program.chmod(0o755)
    secret_making.make(tmp_path / "secrets", secret_making.Places())
    for there, here in {
        "$$": "$",
        "/run/secrets": str(tmp_path / "secrets"),
        ":/usr/local/bin:/app": f":{tmp_path}/usr/local/bin:{tmp_path}/app",
    }.items():
        assert there in line
        line = line.replace(there, here)
    ended = subprocess.run(
        [*SERVICES["s3"]["entrypoint"], line], capture_output=True, text=True, check=True, timeout=60
    )
    held = (tmp_path / "secrets" / "s3_credentials").read_text()
    access, secret = (row.partition(" = ")[2] for row in held.splitlines()[1:])
    assert ended.stdout == f"{access} {secret} --port :7070 posix --versioning-dir /versions /data\n"


def test_images_are_pinned():
    for name, service in SERVICES.items():
        assert re.search(r":\D*\d", service["image"]), name
        assert not service["image"].endswith(":latest"), name


def test_the_script_starts_every_process_of_ours_and_every_server_that_the_file_names():
    ours = {name for name, one in SERVICES.items() if "deploy/production.env" in one.get("env_file", ())}
    assert ours == {*topology.OURS, topology.OPS}
    assert set(SERVICES) - ours == {"postgres", "redis", "s3", "nginx", "prometheus", "grafana"}
    (told,) = json.loads((DEPLOY / "prometheus" / "targets.json").read_text())
    assert told["targets"] == [
        f"{one.name}:{one.settings['PREFIX_METRICS_PORT']}"
        for one in topology.processes()
        if one.name.startswith("service-")
    ]


@pytest.mark.parametrize("process", topology.processes(), ids=lambda process: process.name)
def test_a_process_gets_the_files_settings_but_for_places_and_none_of_the_machines(process, monkeypatch):
    monkeypatch.setenv("PREFIX_ROWS", "3")
    monkeypatch.setenv("AWS_PROFILE", "somebody")
    given = topology.environment(process, dict.fromkeys(topology.PLACES, "here"))
    own = {key: value for key, value in given.items() if key.startswith(("PREFIX_", "AWS_"))}
    assert own == {
        key: "here" if key in topology.PLACES else value for key, value in process.settings.items()
    }
    assert process.argv() == [sys.executable, *SERVICES[process.name]["command"][1:]]


def test_settings_of_the_file_are_ones_that_exist_and_are_taken(monkeypatch):
    fields = {
        f"PREFIX_{name.upper()}"
        for kind in (StoreSettings, ServiceSettings, WorkerSettings)
        for name in kind.model_fields
    }
    for process in topology.processes():
        named = {key for key in process.settings if key.startswith("PREFIX_")}
        assert named <= fields, process.name
    for key in [key for key in os.environ if key.startswith("PREFIX_")]:
        monkeypatch.delenv(key)
    for key, value in topology.env_file(DEPLOY / "production.env").items():
        monkeypatch.setenv(key, value)
    assert StoreSettings().blobs_url == "s3://prefixserve/main"
    assert not StoreSettings().migrates_at_start
    assert ServiceSettings().log_format == WorkerSettings().log_format == "json"


def test_nobody_but_the_migration_has_the_owners_secret():
    having = {name for name, one in SERVICES.items() if "prefix_owner_database_url" in one.get("secrets", ())}
    assert having == {"migrate", topology.OPS}
    assert "secrets" not in SERVICES["nginx"]


def test_no_secret_stands_in_the_file_or_in_the_settings():
    told = topology.env_file(DEPLOY / "production.env")
    for service in SERVICES.values():
        told |= service.get("environment", {})
    held = {key: value for key, value in told.items() if re.search("PASSWORD|SECRET|KEY|CREDENTIALS", key)}
    assert len(held) == 4
    assert not [key for key, value in held.items() if not value.startswith("/run/secrets")]
    assert not [key for key, value in told.items() if re.search(r"://[^/]*@", value)]
    for secret in PRODUCTION["secrets"].values():
        assert secret["file"].startswith("${PREFIXSERVE_SECRETS:-./deploy/sample-secrets}/")


def test_made_secrets_are_those_that_the_file_names_each_new_and_closed_to_others(tmp_path):
    folder = tmp_path / "secrets"
    secret_making.make(folder, secret_making.Places())
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(made) == set(PRODUCTION["secrets"])
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    secret_making.make(tmp_path / "other", secret_making.Places())
    assert not [name for name in made if (tmp_path / "other" / name).read_text() == made[name]]
    assert made["postgres_owner_password"].strip() in made["prefix_owner_database_url"]
    with pytest.raises(FileExistsError, match=r"holds grafana_password.*name a new folder"):
        secret_making.make(folder, secret_making.Places())
    assert {path.name: path.read_text() for path in folder.iterdir()} == made


@pytest.mark.parametrize("name", ["migrate", "service-1"])
def test_nothing_of_ours_starts_with_the_samples_secrets(name, tmp_path):
    process = next(one for one in topology.processes() if one.name == name)
    sample = DEPLOY / "sample-secrets"
    wanted = secret_making.contents(secret_making.Places(), secret_making.SAMPLE)
    assert {path.name: path.read_text().removesuffix("\n") for path in sample.iterdir()} == wanted
    places = dict.fromkeys(topology.PLACES, "0") | {
        "PREFIX_DATA_DIR": str(tmp_path / "data"),
        "PREFIX_SECRET_FILES": str(sample),
        "PREFIX_HOST": "127.0.0.1",
    }
    ended = subprocess.run(
        process.argv(),
        env=topology.environment(process, places),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )
    assert ended.returncode == 1
    said = " ".join((ended.stdout + ended.stderr).split())
    assert "holds the sample's secret" in said
    assert "make your own" in said
    assert not (tmp_path / "data").exists()


def test_nginx_waits_longer_than_a_request_may_take_and_lets_the_largest_upload_through():
    settings = topology.env_file(DEPLOY / "production.env")
    assert seconds(re.search(r"proxy_read_timeout (\w+);", NGINX)[1]) > int(
        settings["PREFIX_DEADLINE_SECONDS"]
    )
    most = int(re.search(r"client_max_body_size (\d+)m;", NGINX)[1]) << 20
    assert most > int(settings["PREFIX_MAX_UPLOAD_BYTES"]) + (1 << 20)
    for name in ("service-1", "service-2"):
        # 5 s to cut what is left, then counts, feed, traces, Redis and threads, each for so long at most.
        last_acts = 5 + 11 + 10 + 3 + 2 + 2
        assert (
            seconds(SERVICES[name]["stop_grace_period"]) > int(settings["PREFIX_DRAIN_SECONDS"]) + last_acts
        )


def test_what_nginx_answers_itself_is_told_in_the_envelope_of_the_services():
    mapped = re.findall(r"error_page ([0-9 ]+?)(?: =[0-9]+)? @(\w+);", NGINX)
    assert {status for statuses, _ in mapped for status in statuses.split()} == {"413", "429", "502", "504"}
    told = dict(re.findall(r"location @(\w+) \{[^}]*?return [0-9]+ '(.+)';", NGINX))
    assert set(told) == {name for _, name in mapped}
    for body in told.values():
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_the_script_says_what_of_nginx_is_missing_and_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(proxy, "program", lambda: None)
    assert "apt-get install nginx-light libnginx-mod-http-lua" in proxy.missing()
    monkeypatch.undo()
    monkeypatch.setattr(proxy, "program", lambda: "/usr/sbin/nginx")
    monkeypatch.setattr(proxy, "MODULES", tmp_path)
    assert "nginx lacks" in proxy.missing()


def test_queries_and_alerts_ask_for_metrics_that_there_are():
    table = (ROOT / "docs" / "observability.md").read_text()
    there = set()
    for row in re.findall(r"^\| (`prefix_.*?) \|", table, re.MULTILINE):
        first, *more = re.findall(r"`(_?\w+)`", row)
        there |= {first} | {one if one.startswith("prefix_") else f"prefix_engine{one}" for one in more}
    assert len(there) > 25
    for asked in QUERIES + [alert["expr"] for alert in ALERTS]:
        for name in re.findall(r"prefix_\w+", asked):
            assert re.sub(r"_(bucket|sum|count)$", "", name) in there, asked


def test_the_documented_alerts_are_the_configured_ones():
    table = (ROOT / "docs" / "observability.md").read_text().partition("Alerts worth having")[2]
    assert len(re.findall(r"^\| (?!alert|---).*\| `", table.partition("## Logs")[0], re.MULTILINE)) == len(
        ALERTS
    )


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_takes_its_configuration_the_alerts_and_every_query_of_the_dashboard(tmp_path):
    rules = [{"record": f"query:{at}", "expr": query} for at, query in enumerate(QUERIES)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for checked in (
        ["config", DEPLOY / "prometheus" / "prometheus.yml"],
        ["rules", tmp_path / "queries.yml"],
    ):
        found = subprocess.run(["promtool", "check", *checked], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr
    assert f"{len(QUERIES)} rules found" in found.stdout
