"""Where a story is told: a data folder of its own and, in the production form, a database, a bucket and a Redis too."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from database_making import POSTGRES, production_database, server
from sqlalchemy import text
from sqlalchemy.engine import make_url

from prefix_store import StoreSettings, open_store
from prefix_store.failpoints import POINTS

LEASE_S = 0.8
_RESTORES = 2  # empty databases: one that a restore is cut short in, and one for the next


class Sqlite:
    """SQLite and files: a copy of one folder that is migrated already."""

    name = "sqlite"
    points = tuple(
        name for name in POINTS if not name.startswith(("object.", "redis.", "worker.", "service."))
    )

    def __init__(self):
        self._kept = tempfile.TemporaryDirectory(prefix="failpoints-")
        self._model = Path(self._kept.name) / "model"

    def __enter__(self):
        store = open_store(StoreSettings(data_dir=self._model, **self._settings("")))
        store.migrate()
        store.close()
        return self

    def __exit__(self, *_):
        self._kept.cleanup()

    @contextlib.contextmanager
    def place(self, *, copies):
        """A home, and what stands in the environment of those who tell there."""
        home = Path(tempfile.mkdtemp(dir=self._kept.name))
        shutil.copytree(self._model, home / "store")
        try:
            yield home, self.environment(home, copies)
        finally:
            shutil.rmtree(home)

    def environment(self, _home, _copies):
        return {}

    def settings(self, home):
        """The same for a neighbour in this process."""
        return StoreSettings(data_dir=home / "store", lease_seconds=LEASE_S, **self._settings(home.name))

    def _settings(self, _name):
        return {}


class Production(Sqlite):
    """PostgreSQL with its three roles, an object storage that is moto's, and a Redis where there is one."""

    name = "postgresql+s3"

    def __init__(self):
        super().__init__()
        from production_making import REDIS, REGION, bucket  # noqa: PLC0415 - starts an object storage

        self._redis = REDIS
        name, endpoint, _ = bucket()
        brief = {"blobs_timeout_seconds": "4"}  # four times as long an erasure waits for what may still come
        self._bucket = {"blobs_endpoint": endpoint, "blobs_region": REGION} | brief, f"s3://{name}"
        self._stack = contextlib.ExitStack()
        own = ("object.", "redis.") if REDIS else ("object.",)
        self.points = tuple(n for n in Sqlite.points if not n.startswith("file."))
        self.points += tuple(name for name in POINTS if name.startswith(own))

    def __enter__(self):
        urls = self._stack.enter_context(production_database())
        self._urls = {kind: make_url(url) for kind, url in urls.items()}
        self._name = self._urls["owner"].database
        return super().__enter__()

    def __exit__(self, *exit_):
        self._stack.close()
        super().__exit__(*exit_)

    @contextlib.contextmanager
    def place(self, *, copies):
        with super().place(copies=copies) as (home, environment):
            names = [home.name] + [f"{home.name}-{n}" for n in range(_RESTORES if copies else 0)]
            with server() as connection:
                for name in names:
                    model = f" TEMPLATE {self._name}" if name == home.name else ""
                    owner = self._urls["owner"].username
                    connection.execute(text(f'CREATE DATABASE "{self._database(name)}" OWNER {owner}{model}'))
            try:
                yield home, environment
            finally:
                with server() as connection:
                    for name in names:
                        connection.execute(text(f'DROP DATABASE "{self._database(name)}" WITH (FORCE)'))

    def environment(self, home, copies):
        found = {f"PREFIX_{key.upper()}": value for key, value in self._settings(home.name).items()}
        found |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        restores = [self._settings(f"{home.name}-{n}") for n in range(_RESTORES if copies else 0)]
        return found | {"STORY_RESTORES": json.dumps(restores)}

    def _database(self, name):
        return f"{self._name}_{name}" if name else self._name

    def _settings(self, name):
        database = self._database(name)
        kinds = {
            "database_url": "application",
            "system_database_url": "system",
            "owner_database_url": "owner",
        }
        urls = {
            setting: self._urls[kind].set(database=database).render_as_string(hide_password=False)
            for setting, kind in kinds.items()
        }
        known, bucket = self._bucket
        found = urls | known | {"blobs_url": f"{bucket}/{database}"}
        if self._redis:
            found |= {"redis_url": self._redis, "redis_prefix": f"test:{database}"}
        return found


def forms():
    """Those that can be had here."""
    return [Sqlite, Production] if POSTGRES else [Sqlite]
