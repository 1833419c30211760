"""The image and `deploy/compose.yaml` on a container engine. Only `make containers` runs these tests."""
