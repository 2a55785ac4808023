"""Adapters in the format of PEFT, written and read without it."""
