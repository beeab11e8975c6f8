"""What travels between nodes: frames (kinds, header, version) and the body codec."""
