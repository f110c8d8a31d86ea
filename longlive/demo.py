"""The story that `longlive demo` tells: five prompts in twenty seconds of the miniature's world."""

STORY = """\
# where it begins is said once; every later prompt goes on from where the thing is
4.5s | a yellow ring moves right at night from the north west
3.75s | a yellow ring moves down at dusk
3.75s | a red ring moves down at dusk
3.75s | a red triangle moves left by day
4.5s | a blue square moves up at night
"""
ENLARGED = 6  # times, to be looked at
