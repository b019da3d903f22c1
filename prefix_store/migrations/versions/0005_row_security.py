"""Row-level security on PostgreSQL, and the oldest code that can run on the schema.

A row is reached by a transaction that has set its tenant and its owner (`prefixserve.tenant`, `prefixserve.owner`;
`*` is every owner). The tables' owner is held to this too (FORCE) unless it sets `prefixserve.system`, which nobody
else's policies know; the system role's own policies and both roles' privileges are given by `prefixserve migrate`,
since their names are settings. The code before this one sets nothing, so on PostgreSQL it goes on only as a superuser.

`compatibility` names the oldest revision whose code can run on this schema. A migration that takes away or narrows
what that code uses raises it; one that only adds leaves it.
"""

from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TENANT = "nullif(current_setting('prefixserve.tenant', true), '')"
OWNER = "nullif(current_setting('prefixserve.owner', true), '')"
OPERATOR = "current_setting('prefixserve.operator', true) = 'on'"
SYSTEM = "current_setting('prefixserve.system', true) = 'on'"
MINE = f"tenant_id = {TENANT} AND ({OWNER} = '*' OR owner_id = {OWNER})"
OWNED = (
    "owners",
    "api_keys",
    "datasets",
    "prefixes",
    "versions",
    "version_sources",
    "jobs",
    "job_sources",
    "job_events",
    "checkpoints",
    "litter",
    "erasures",
    "usage",
    "idempotency",
)
# A user generates with the tenant's tasks and sees them listed.
TASKS = {
    "owners": f"tenant_id = {TENANT} AND kind = 'task'",
    "prefixes": f"tenant_id = {TENANT} AND EXISTS (SELECT FROM owners AS o WHERE o.tenant_id = prefixes.tenant_id"
    " AND o.owner_id = prefixes.owner_id AND o.kind = 'task')",
    "versions": f"tenant_id = {TENANT} AND EXISTS (SELECT FROM owners AS o WHERE o.tenant_id = versions.tenant_id"
    " AND o.owner_id = versions.owner_id AND o.kind = 'task')",
}
# Each entry of the log is bound to the one before, whose tenant may be another: its seal alone is granted.
LAST = f"{TENANT} IS NOT NULL AND seq = (SELECT value - 1 FROM counters WHERE name = 'audit')"  # noqa: S608 - constants


def upgrade() -> None:
    op.create_table("compatibility", sa.Column("oldest", sa.String(), primary_key=True))
    op.execute("INSERT INTO compatibility VALUES ('0005')")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("; ".join(_policies()))


def _policies() -> Iterator[str]:
    for table in OWNED:
        yield f"CREATE POLICY mine ON {table} USING ({MINE}) WITH CHECK ({MINE})"
    for table, condition in TASKS.items():
        yield f"CREATE POLICY tasks ON {table} FOR SELECT USING ({condition})"
    yield f"CREATE POLICY mine ON tenants USING (id = {TENANT} OR {OPERATOR})"
    yield f"CREATE POLICY operator ON erasures FOR SELECT USING ({OPERATOR})"
    yield f"CREATE POLICY mine ON changes FOR INSERT WITH CHECK ({MINE})"
    yield f"CREATE POLICY mine ON audit FOR INSERT WITH CHECK (tenant_id = {TENANT})"
    yield f"CREATE POLICY last ON audit FOR SELECT USING ({LAST})"
    for table in (*OWNED, "tenants", "changes", "audit"):
        yield f"CREATE POLICY all_of_it ON {table} TO CURRENT_USER USING ({SYSTEM}) WITH CHECK ({SYSTEM})"
        yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
        yield f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY"
        # Deleted rows leave the table at the next round of the server's own vacuum, however few they are.
        yield f"ALTER TABLE {table} SET (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0)"


def downgrade() -> None:
    raise NotImplementedError("migrations only go forward")
