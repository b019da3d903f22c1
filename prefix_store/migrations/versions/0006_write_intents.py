"""Files on their way to their row, so that an erasure can tell what may still come of the erased owner's data.

Only a table is added. Processes of the code before this one go on and note nothing: what they leave without a row is
the sweep's, as before, so an erasure promises the whole of it once all of them have been changed over.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TENANT = "nullif(current_setting('prefixserve.tenant', true), '')"
OWNER = "nullif(current_setting('prefixserve.owner', true), '')"
SYSTEM = "current_setting('prefixserve.system', true) = 'on'"
MINE = f"tenant_id = {TENANT} AND ({OWNER} = '*' OR owner_id = {OWNER})"


def upgrade() -> None:
    op.create_table(
        "intents",
        sa.Column("tenant_id", sa.String(), primary_key=True),
        sa.Column("owner_id", sa.String(), primary_key=True),
        sa.Column("object_id", sa.String(), primary_key=True),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("noted_at", sa.Float(), nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        for statement in (
            f"CREATE POLICY mine ON intents USING ({MINE}) WITH CHECK ({MINE})",
            f"CREATE POLICY all_of_it ON intents TO CURRENT_USER USING ({SYSTEM}) WITH CHECK ({SYSTEM})",
            "ALTER TABLE intents ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE intents FORCE ROW LEVEL SECURITY",
            "ALTER TABLE intents SET (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0)",
        ):
            op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("migrations only go forward")
