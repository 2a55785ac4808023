"""Specs that come with tnc: recipes by bare name, examples of structures, the JSON schema."""
