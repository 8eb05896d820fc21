"""Room: how a recognizer is executed; what it computes is the method's.

A component's call may take a fast form, and be cut into the numbers of rows that a device likes best; videos of a
stream may wait for each other, so that late segments run as full as early ones. Results stay what they are, within
rounding. Methods know nothing of this room.
"""
