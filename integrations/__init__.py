"""One file for each host framework, all with the same verbs. Import the one you need; none is imported for you."""
