"""The error of a workdir that cannot be used."""

from jaxtune.display.errors import UserError


class WorkdirError(UserError):
    """A directory that cannot be used for the requested run."""
