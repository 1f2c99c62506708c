"""The page and the inference service; `app.create_app` makes it, `server.serve` runs it."""
