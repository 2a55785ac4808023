"""Graph passes, one file each. Installed as `tnc.passes`; never import the bare folder."""
