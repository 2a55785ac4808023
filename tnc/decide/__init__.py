"""Decisions: specs, sites, facts, core shapes, allocation, plans. No torch."""
