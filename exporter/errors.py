"""The one error type that a user sees without a traceback."""


class UserError(Exception):
    """Something that the user can mend: `message` states what was seen, `hint` the mend."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
