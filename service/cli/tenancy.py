"""Verbs on tenants, their users and their keys."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.target import Target, connect, target
from service.cli.terminal import CommandError, moment, out, plain, show_table

if TYPE_CHECKING:
    from service.cli.connection import Connection

ERASURE_POLL_SECONDS = 0.5
ERASURE_PATIENCE_SECONDS = 120.0

tenants = typer.Typer(name="tenants", help="Customers of the service (admin key).", no_args_is_help=True)
users = typer.Typer(name="users", help="People of a tenant, whose data is isolated.", no_args_is_help=True)
keys = typer.Typer(name="keys", help="API keys of a tenant and of its users.", no_args_is_help=True)


@tenants.callback()
def admin(
    context: typer.Context,
    admin_key: Annotated[
        str | None,
        typer.Option(envvar="PREFIX_ADMIN_KEY", help="The admin key; made by the service's first start."),
    ] = None,
) -> None:
    """Customers of the service (admin key)."""
    if admin_key is not None:
        context.obj = Target(target(context).url, admin_key)


@tenants.command("create")
def create_tenant(
    context: typer.Context,
    name: str,
    joint_training: Annotated[
        bool,
        typer.Option(
            "--joint-training",
            help="Its jobs may be trained in one process with others that may, which is faster.",
        ),
    ] = False,
) -> None:
    """Make a tenant; prints its key once."""
    body = {"name": name} | ({"joint_training": True} if joint_training else {})
    show_made(connect(context).post("/v1/tenants", body))


@tenants.command("list")
def list_tenants(context: typer.Context) -> None:
    """Every tenant."""
    rows = [(t["id"], t["name"], moment(t.get("created_at"))) for t in connect(context).pages("/v1/tenants")]
    show_table(("id", "name", "created (UTC)"), rows, "no tenants yet")


@tenants.command("delete")
def delete_tenant(context: typer.Context, tenant_id: str) -> None:
    """Erase a tenant: its users, keys, datasets, prefixes."""
    erase(connect(context), f"/v1/tenants/{tenant_id}", tenant_id)


@users.command("create")
def create_user(context: typer.Context, name: str) -> None:
    """Make a user of the tenant."""
    connect(context).post("/v1/users", {"id": name})
    out().print(plain(f"user {name} made; `prefixserve keys create --user {name}` makes a key for it"))


@users.command("list")
def list_users(context: typer.Context) -> None:
    """The tenant's users."""
    rows = [(user["id"], moment(user.get("created_at"))) for user in connect(context).pages("/v1/users")]
    show_table(("user", "created (UTC)"), rows, "no users yet")


@users.command("delete")
def delete_user(context: typer.Context, name: str) -> None:
    """Erase a user: keys, datasets, jobs, prefixes; waits until no process uses them."""
    erase(connect(context), f"/v1/users/{name}", name)


@keys.command("create")
def create_key(
    context: typer.Context,
    user: Annotated[str | None, typer.Option(help="A user; without it the key is the tenant's.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="Only this scope; may be repeated.")] = None,
) -> None:
    """Make a key; prints it once."""
    show_made(connect(context).post("/v1/keys", {"user": user, "scopes": scope or None}))


@keys.command("list")
def list_keys(context: typer.Context) -> None:
    """Live keys, without their secrets."""
    rows = [
        (key["id"], key.get("user") or "(tenant)", ", ".join(key.get("scopes") or []), key.get("last4"))
        for key in connect(context).pages("/v1/keys")
    ]
    show_table(("id", "user", "scopes", "ends in"), rows, "no keys")


@keys.command("revoke")
def revoke_key(context: typer.Context, key_id: str) -> None:
    """End a key at once."""
    connect(context).delete(f"/v1/keys/{key_id}")
    out().print(plain(f"key {key_id} revoked"))


def show_made(made: Mapping[str, Any]) -> None:
    """An answer that holds a new key."""
    for field in ("id", "name", "user", "api_key"):
        if made.get(field) is not None:
            out().print(plain(f"{field:8} {made[field]}"))
    out().print(plain("The key is shown only now; keep it."))


def erase(connection: "Connection", path: str, what: str) -> None:
    """Delete an owner and wait until the erasure is done.

    Raises:
        CommandError: it is still not done after two minutes; it goes on by itself.
    """
    answer = connection.delete(path)
    deadline = time.monotonic() + ERASURE_PATIENCE_SECONDS
    while not answer.get("deleted"):
        erasure = answer.get("erasure") or answer.get("erasure_id") or answer["id"]
        if time.monotonic() > deadline:
            raise CommandError(f"{what} is shut out, but erasure {erasure} is not done yet; it goes on")
        time.sleep(ERASURE_POLL_SECONDS)
        answer = connection.get(f"/v1/erasures/{erasure}") | {"erasure": erasure}
    out().print(plain(f"{what} deleted"))
    if answer.get("purge") == "pending":
        out().print(plain(f"bytes of it are still being removed; erasure {answer['erasure']} tells when"))
