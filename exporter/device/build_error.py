"""The one exception that building engines raises on purpose."""


class EngineError(Exception):
    """What cannot be built: `message` states what was seen, `hint` what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
