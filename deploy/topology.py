"""What `docker-compose.production.yml` says of our processes, for one who starts them without containers.

The file is the one truth of names, commands, settings and secrets; here only places are others.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "docker-compose.production.yml"
OURS = ("migrate", "service-1", "service-2", "worker-1", "worker-2")
OPS = "ops"  # ours too, but the operator starts it
# Settings whose values are a place, and so not a container's here.
PLACES = frozenset(
    {
        "PREFIX_DATA_DIR",
        "PREFIX_SECRET_FILES",
        "PREFIX_BLOBS_ENDPOINT",
        "AWS_SHARED_CREDENTIALS_FILE",
        "PREFIX_HOST",
        "PREFIX_PORT",
        "PREFIX_METRICS_PORT",
    }
)


@dataclass(frozen=True, slots=True)
class Process:
    """One process of ours.

    Attributes:
        command: as in the file.
        settings: of its environment, places included.
        secrets: names of the files that it may read.
    """

    name: str
    command: tuple[str, ...]
    settings: Mapping[str, str]
    secrets: frozenset[str]

    def argv(self) -> list[str]:
        """The command with this interpreter."""
        return [sys.executable, *self.command[1:]]


def read(path: Path = COMPOSE) -> dict[str, Any]:
    """The file, its anchors resolved."""
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def processes(names: Sequence[str] = OURS) -> list[Process]:
    """Our processes in the order of their start."""
    services = read()["services"]
    found = []
    for name in names:
        service = services[name]
        settings = {key: str(value) for key, value in service["environment"].items()}
        for file in service["env_file"]:
            settings = env_file(ROOT / file) | settings
        found.append(Process(name, tuple(service["command"]), settings, frozenset(service["secrets"])))
    return found


def env_file(path: Path) -> dict[str, str]:
    """Settings of a file of `NAME=value` lines."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def environment(process: Process, places: Mapping[str, str]) -> dict[str, str]:
    """What a process is started with: this machine's environment without its PREFIX_ and AWS_ settings, then its own.

    Args:
        process: whose settings are in containers' places.
        places: what stands for each of its `PLACES`.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFIX_", "AWS_"))}
    own = {key: places[key] if key in PLACES else value for key, value in process.settings.items()}
    return kept | own | {"PYTHONUNBUFFERED": "1"}


def places(shown: Path, home: Path, storage: int, api: int, metrics: int) -> dict[str, str]:
    """What stands for each of `PLACES` where everything is on this machine.

    Args:
        shown: the folder that `show` made.
        home: where its data folder is.
        storage: port of the object storage.
        api: port that it serves on; 0 is any.
        metrics: port of its metrics; 0 is any.
    """
    return {
        "PREFIX_DATA_DIR": str(home / "data"),
        "PREFIX_SECRET_FILES": str(shown),
        "PREFIX_BLOBS_ENDPOINT": f"http://127.0.0.1:{storage}",
        "AWS_SHARED_CREDENTIALS_FILE": str(shown / "s3_credentials"),
        "PREFIX_HOST": "127.0.0.1",
        "PREFIX_PORT": str(api),
        "PREFIX_METRICS_PORT": str(metrics),
    }


def show(process: Process, secrets: Path, folder: Path) -> Path:
    """A folder in which a process finds the secrets that are its own, and no other."""
    own = folder / process.name
    own.mkdir(parents=True, mode=0o700)
    for name in process.secrets:
        (own / name).hardlink_to(secrets / name)  # a link that leads out of the folder is not followed
    return own
