"""From a list to a campaign: the file that declares it, the import of leads, and the plan of a day."""
