"""The application: everything that knows an Experiment."""
