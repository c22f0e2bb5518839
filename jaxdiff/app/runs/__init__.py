"""Runs: directories where configs are trained, resumed, sampled and measured."""
