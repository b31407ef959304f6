"""Entry points for other projects' tools; each module needs the extra that it names."""
