"""The console: web pages for operators. It has no power of its own: it calls the HTTP API as the person signed in."""
