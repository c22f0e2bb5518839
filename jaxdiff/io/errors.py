"""The errors whose message says all that a user needs: what is wrong, where, and what to do instead."""


class UserError(Exception):
    """What a user can mend; the command line prints its one line and no traceback."""


class ConfigError(UserError, ValueError):
    """A config, flag or run directory that cannot be used as it is."""


class UsageError(ConfigError):
    """A command line that cannot be read."""


class DataError(UserError):
    """A data set that cannot be read or prepared."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written, or whose values are not those that were saved."""


class NonFiniteError(UserError):
    """A loss, gradient, parameter or image that is no number."""


class LostProcessError(UserError):
    """One of the processes of a run is gone."""
