"""Specs that users read and copy. Installed as `tnc.specs`."""
