"""Searches: `tnc search run NAME` runs one by its bare name; copy one to begin your own."""
