"""The production form: settings of its servers, its secrets, and a script that starts it without containers."""
