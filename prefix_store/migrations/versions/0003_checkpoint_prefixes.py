"""The prefix of a job's checkpoint, to be called while the job runs, and changes that name a job.

Only nullable columns are added, so that processes of the code before this one go on: a checkpoint that they write
has no prefix, and one that they remove takes its row along, never leaving one that names a removed job.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("prefix_object_id", sa.String(), nullable=True),
        sa.Column("prefix_sha256", sa.String(), nullable=True),
        sa.Column("prefix_at", sa.Float(), nullable=True),
        sa.Column("m", sa.Integer(), nullable=True),
        sa.Column("position_offset", sa.Integer(), nullable=True),
        sa.Column("base_fingerprint", sa.String(), nullable=True),
        sa.Column("template", sa.JSON(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=True),
    ):
        op.add_column("checkpoints", column)
    op.add_column("changes", sa.Column("job_id", sa.String(), nullable=True))
