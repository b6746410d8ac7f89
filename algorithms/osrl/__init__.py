"""OSRL's own code behind the harness's interface, to compare the methods with."""
