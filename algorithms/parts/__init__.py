"""What methods are made of: each module is one thing that several of them, or a plugin, put together."""
