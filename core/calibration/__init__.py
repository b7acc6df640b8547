"""Calibration of a posterior, with and without clean images; see docs/calibration.md.

Every check is a function of tensors, so that it can be proved on a problem with an exact answer.
`evaluate` applies all of them to a finished run.
"""
