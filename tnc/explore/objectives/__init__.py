"""Objectives: one number, the smaller the better, from the metrics of a trial. One file each."""
