"""Whose secrets the database belongs to: its one row, written by the first process that opens it with them.

Only a table is added, and nothing into it, since who migrates may lack the secrets. Processes of the code before this
one go on and do not look at it. No tenant's row is in it, so it is under no policy; the application's role may read it
and add the row while it is not there, and nobody but the tables' owner may change it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("pepper_proof", sa.String(), nullable=False),
    )


def downgrade() -> None:
    raise NotImplementedError("migrations only go forward")
