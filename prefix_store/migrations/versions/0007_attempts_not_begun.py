"""How often no training process began with a job, apart from how often the job was claimed.

Only a column with a default is added, so that processes of the code before this one go on: they go by the claims as
before, and leave the column alone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("not_begun", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    raise NotImplementedError("migrations only go forward")
