"""What fits what: every refusal of a loss, a tap or a view that would compare the wrong things.

A step reads without them. Before training :mod:`.places` looks at two places and the loss, and
:mod:`.heads` at two heads. In a step :mod:`.maps` looks at tensors at module paths,
:mod:`.rows` at the rows of heads, and :mod:`.both` has what the two share.

The messages do not say which term they speak of: whoever builds or runs a term puts that in front
(:func:`mmkd_plugin.errors.placed`).
"""
