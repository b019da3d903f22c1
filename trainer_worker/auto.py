"""What "auto" means: one line of `AUTOS` for each size of dataset, told with its figures in docs/defaults.md.

Updates and rows of an update rest on the study there: at the same work many updates of few rows have the lower loss, at
100 and at 500 examples. 500 examples gain up to 480 updates; 100 examples gain up to 240 on the half that chooses,
where the half that reports has lost 0.02.
What the form and the start of the text rest on are the losses that bench/losses.py measures on the carried
base, at equal updates. The direct form beats the MLP by 0.09 nats a token on the booking assistant, 0.04 on
the quiz master and 0.01 on the fables (251 rows) and loses 0.02 on the poems (394 rows); its checkpoints take
half a MB where the MLP's take 20, and it needs no fit. (These four are losses on evaluation files.) Text at
0 has the lower loss on rows held out of the training file on six of eight sets, by 0.008 at most, and the
higher on two, by 0.016 at most: so it starts at 0, where the prefix costs none of the base's positions.
Whoever needs the file in PEFT's form asks for m.
"""

import math
from dataclasses import dataclass
from typing import Literal

Form = Literal["mlp", "direct"]
Init = Literal["words", "random"]

TEXT_START: Literal["m", "0"] = "0"


@dataclass(frozen=True, slots=True)
class Auto:
    """What a job takes that did not ask for something else.

    Attributes:
        rows: most training rows that it is for; rows held out do not count.
        m: positions of the prefix.
        form: direct or mlp.
        init: words or random values.
        direct: learning rate of the direct form.
        mlp: learning rate of the MLP.
        batch: rows of an update, whatever their length.
        epochs: passes over the rows, as far as `fewest` and `most` let.
        fewest: updates at the least.
        most: updates at most.
        dropout: share of the prefix's numbers that an update leaves out.
    """

    rows: float
    m: int
    form: Form
    init: Init
    direct: float
    mlp: float
    batch: int
    epochs: int
    fewest: int
    most: int
    dropout: float

    def rate(self, form: Form) -> float:
        """Learning rate of a form, which a learning_rate_multiplier multiplies."""
        return self.direct if form == "direct" else self.mlp

    def updates(self, per_epoch: int) -> int:
        """Updates where an epoch takes so many."""
        return max(self.fewest, min(self.most, self.epochs * per_epoch))


# rows up to, m, form, init, rate direct, rate mlp, batch, epochs, fewest and most updates, dropout
AUTOS = (
    Auto(200, 10, "direct", "words", 1e-1, 1e-3, 4, 10, 240, 480, 0.0),
    Auto(math.inf, 10, "direct", "words", 1e-1, 1e-3, 4, 5, 480, 1200, 0.0),
)


def auto_for(rows: int) -> Auto:
    """What auto means for so many training rows."""
    return next(auto for auto in AUTOS if rows <= auto.rows)
