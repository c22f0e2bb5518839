"""The page of `jaxdiff demo`: images drawn and edited by a run, or by two from the same noise."""
