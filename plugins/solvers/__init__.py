"""Posterior samplers that need a prior and an operator, but no flow."""
