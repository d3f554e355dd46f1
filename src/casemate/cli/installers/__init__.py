"""What ``casemate install`` writes into the configuration of each engine."""
