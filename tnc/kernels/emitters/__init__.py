"""Emitters print programs as source."""
