"""What stands beside a PostgreSQL database in the production form: a bucket and, where there is one, a Redis.

`PREFIX_TEST_REDIS_URL` names the Redis; the object storage is moto's, started once by each process that runs tests.
"""

import os
import secrets
from functools import cache

import redis
from outside_servers import object_storage
from sqlalchemy.engine import make_url

from prefix_store.bucket_versions import access_to, address_of
from prefix_store.local_files import LocalFiles
from prefix_store.sealed_files import path_of

REDIS = os.environ.get("PREFIX_TEST_REDIS_URL")
REGION, SECONDS = "us-east-1", 20.0


@cache
def bucket():
    """A bucket that keeps versions, this process's own; its endpoint and client."""
    endpoint, name = object_storage(), f"prefixserve-test-{secrets.token_hex(6)}"
    client = access_to(address_of(f"s3://{name}", endpoint, REGION, SECONDS)).client()
    client.create_bucket(Bucket=name)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name, endpoint, client


def beside(database_url):
    """Settings of the rest of the form that a database stands for; none for SQLite."""
    if database_url is None:
        return {}
    own = make_url(database_url).database
    name, endpoint, _ = bucket()
    settings = {"blobs_url": f"s3://{name}/{own}", "blobs_endpoint": endpoint, "blobs_region": REGION}
    return settings | ({"redis_url": REDIS, "redis_prefix": f"test:{own}"} if REDIS else {})


def clear_redis(database_url):
    """Leave no key of a run behind."""
    settings = beside(database_url)
    if "redis_url" in settings:
        with redis.Redis.from_url(settings["redis_url"]) as client:
            for key in client.scan_iter(match=f"{settings['redis_prefix']}:*", count=500):
                client.delete(key)


def environment(settings):
    """The same for a process that is started."""
    found = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for name in (
        "database_url",
        "system_database_url",
        "blobs_url",
        "blobs_endpoint",
        "blobs_region",
        "redis_prefix",
    ):
        value = getattr(settings, name)
        if value is not None:
            found[f"PREFIX_{name.upper()}"] = value
    if settings.redis_url is not None:
        found["PREFIX_REDIS_URL"] = settings.redis_url.get_secret_value()
    return found


def _object(store, place):
    name, _, client = bucket()
    return client, {"Bucket": name, "Key": f"{store.blobs.files._prefix}{path_of(place)}"}


def sealed(store, place):
    """A file's bytes as they lie."""
    if isinstance(store.blobs.files, LocalFiles):
        return store.blobs.files.path(place).read_bytes()
    client, where = _object(store, place)
    return client.get_object(**where)["Body"].read()


def damage(store, place, change):
    """Put something else where a file lies: `change` makes it from the bytes; no cache has them any more."""
    data = change(sealed(store, place))
    if isinstance(store.blobs.files, LocalFiles):
        path = store.blobs.files.path(place)
        path.chmod(0o600)
        path.write_bytes(data)
        return
    client, where = _object(store, place)
    client.put_object(**where, Body=data)
    if (link := store._core.link) is not None:
        link.ask(lambda server: server.delete(link.key("blobs", place.tenant_id, place.owner_id)), None)


def everything_kept(store):
    """Names of all files, drafts, versions, delete markers and unfinished uploads."""
    files = store.blobs.files
    if isinstance(files, LocalFiles):
        return [str(path) for path in files.root.rglob("*") if path.is_file()]
    name, _, client = bucket()
    uploads = client.list_multipart_uploads(Bucket=name, Prefix=files._prefix).get("Uploads", [])
    return [version.key for version in files._versions.below(files._prefix)] + [u["Key"] for u in uploads]


def cached(store):
    """Sealed files in Redis, by the key of their owner and their own id."""
    link = store._core.link
    keys = link.ask(lambda server: list(server.scan_iter(match=f"{link.key('blobs')}:*")), [])
    found = {key: link.ask(lambda server, key=key: server.hgetall(key), {}) for key in keys}
    return {(key, object_id): data for key, of in found.items() for object_id, data in of.items()}
