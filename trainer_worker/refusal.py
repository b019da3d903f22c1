"""Why a job cannot be trained: the user's to mend, so never tried again."""


class Refused(Exception):
    """Bad data or a bad setting; the message names the mend and never quotes text of the data.

    Attributes:
        code: stable, for programs.
        message: for people.
        param: field of the job's request that is to blame.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
