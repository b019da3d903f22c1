"""The HTTP side: authenticate, admit, translate, stream."""
