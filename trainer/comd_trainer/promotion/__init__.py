"""Which student is served: the comparison that decides (pure), and the pointer that says so.

channels/<channel>.json               the pointer: a serving stack reads it, and nothing else
channels/<channel>/<record>.json      one for each time that it was moved; never changed
"""
