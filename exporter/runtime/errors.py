"""The one exception that the loop raises on purpose."""


class UserError(ValueError):
    """Something that the caller can put right.

    `message` states the values seen, `hint` what to do about them.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
