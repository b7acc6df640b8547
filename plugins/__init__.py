"""The bundled plug-ins; `registry.yaml` says what there is."""
