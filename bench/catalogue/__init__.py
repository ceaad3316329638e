"""All that is asked for by name: plug-ins, parameters, protocols, suites, corruptions."""
