"""Ranks that change while a model trains: one line before the loop, one line in it.

`tnc.adapt_ranks` makes the `Ranks` of `adapting.ranks`; the methods are the schedules in
`adapting/schedules`, one file each.
"""
