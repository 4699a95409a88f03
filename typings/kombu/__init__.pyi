# kombu's own annotations are incomplete: see the modules of this folder.
