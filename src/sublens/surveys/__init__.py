"""Surveys: the settings that scenes are drawn with, and those of named ones in TOML files."""
