"""What is asked for by name: plug-ins, parameters, protocols, suites, corruptions."""
