"""Room: parts that several methods are built of; each is a pure function or a module and knows no method.

Two methods never import each other: what they share stands here, with its source in the papers. `backbones` builds
networks by name. Parameter names are part of saved checkpoints: keep them.
"""
