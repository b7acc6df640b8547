"""Networks that priors are built on."""
