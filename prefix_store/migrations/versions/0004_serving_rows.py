"""Where each process runs and how many texts it generates, so that training beside it can let it by.

Only columns with defaults are added.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("processes", sa.Column("machine", sa.String(), nullable=False, server_default=""))
    op.add_column("processes", sa.Column("generating", sa.Integer(), nullable=False, server_default="0"))
