"""Secrets of an installation, one in a file: `python -m deploy.secret_making FOLDER`.

Owns their names and forms, for containers and for `make cluster` alike. Makes what is not there and never writes over
what is; shows none.
"""

import argparse
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SAMPLE = "changethis"


@dataclass(frozen=True, slots=True)
class Places:
    """Where the servers will be: `host:port` of each, and the database's name."""

    postgres: str = "postgres:5432"
    redis: str = "redis:6379"
    database: str = "prefixserve"


def contents(places: Places, word: str | None = None) -> Mapping[str, str]:
    """Every file's name and what it holds; with `word` for each password, as in the sample."""

    def made(count: int = 32) -> str:
        return word or secrets.token_urlsafe(count)

    def url(role: str, password: str) -> str:
        return f"postgresql://{places.database}_{role}:{password}@{places.postgres}/{places.database}"

    owner, redis = made(), made()
    return {
        "postgres_password": made(),
        "postgres_owner_password": owner,
        "prefix_owner_database_url": url("owner", owner),
        "prefix_database_url": url("app", made()),
        "prefix_system_database_url": url("system", made()),
        "prefix_redis_url": f"redis://:{redis}@{places.redis}/0",
        "redis.conf": f'requirepass {redis}\nsave ""\nappendonly no\nmaxmemory 256mb\nmaxmemory-policy allkeys-lru',
        "prefix_admin_key": f"pfx_admin_{made()}",
        "s3_credentials": f"[default]\naws_access_key_id = {word or secrets.token_hex(10)}\n"
        f"aws_secret_access_key = {made()}",
        "grafana_password": made(),
    }


def make(folder: Path, places: Places, *, mode: int = 0o600) -> None:
    """Make all of them in a folder that only its owner can enter.

    Args:
        folder: made if it is not there.
        places: that stand in the URLs.
        mode: of the files; containers, whose users are others, need 0444.

    Raises:
        FileExistsError: some of them are there, which belong together.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    made = contents(places)
    if found := sorted(name for name in made if (folder / name).exists()):
        raise FileExistsError(f"{folder} holds {', '.join(found)} already; name a new folder")
    for name, value in made.items():
        with os.fdopen(os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(value + "\n")
        (folder / name).chmod(mode)


def main() -> None:
    """Make a folder of secrets, or say why not."""
    parser = argparse.ArgumentParser(prog="python -m deploy.secret_making", description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder, outside the clone")
    parser.add_argument(
        "--for-containers",
        action="store_true",
        help="files that the containers' users can read (0444), in a folder that only you can enter (0700)",
    )
    asked = parser.parse_args()
    try:
        make(asked.folder, Places(), mode=0o444 if asked.for_containers else 0o600)
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
