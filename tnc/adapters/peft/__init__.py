"""Adapters in the format of PEFT, written and read without it."""

from tnc.adapters.peft.exporting import Exported, Row, export_peft

__all__ = ["Exported", "Row", "export_peft"]
