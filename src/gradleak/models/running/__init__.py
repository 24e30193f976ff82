"""How a model is called, and how its layers are listened to."""
