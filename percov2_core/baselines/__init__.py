"""Classic codecs behind one interface."""
