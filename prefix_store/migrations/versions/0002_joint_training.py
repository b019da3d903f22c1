"""Tenants that let their jobs be trained beside others', and whether a job may be.

Only columns with defaults are added, so that processes of the code before this one go on; they do not start anew
on this schema, since they do not know its revision.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "tenants", sa.Column("joint_training", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("jobs", sa.Column("company", sa.String(), nullable=False, server_default="open"))
