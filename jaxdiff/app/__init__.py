"""The application: everything that knows an Experiment.

What a user can mend is raised as an `io.errors.UserError`, most often a ConfigError: one line that says what is wrong, where, and
what to write instead.
"""
