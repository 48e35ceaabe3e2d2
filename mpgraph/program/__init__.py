"""What a user holds: a compiled network and rule."""
