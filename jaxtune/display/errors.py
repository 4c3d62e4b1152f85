"""The base class of errors that a person can correct."""


class UserError(ValueError):
    """An error meant for the person at the terminal, which says what to do in one message.

    The command line prints it without a traceback, and takes every other exception for a defect.
    """
