"""A stranger at the page's door: whatever a program can send, sent to a real server."""
